"""Measure a model file on held-out pictures and write what was found into its card.

`python -m training.evaluate --data DIR --split split.csv` scores the `test` fold through the public API on
the shipped `.onnx` and prints every table. With `--write` it also rewrites the part of weights/MODEL_CARD.md between its two
markers, and weights/operating_points.json, from which reports correct their counts. Needs no torch.
"""

import json
from pathlib import Path

import click

from imgsafety import Policy, PolicyError, Scanner, load_policy
from imgsafety.policy import check_fit, shipped_policies
from imgsafety.session import PROVIDERS, score_names, shipped_model
from training.manifest import check_sources, load_manifest
from training.predict import open_scanner, predict
from training.settings import FILE, load_settings
from training.split import read_fold
from training.tables import (
    Mask,
    Measured,
    age_tables,
    attire_tables,
    calibration_tables,
    cascade_tables,
    changed_tables,
    edit_tables,
    judged_tables,
    markdown,
    small_people_tables,
    verdict_table,
)

START, END = "<!-- figures: written by training.evaluate -->", "<!-- end of figures -->"


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", type=FILE, help="split.csv that training.train wrote.")
@click.option("--policy", "policy_name", default="default", show_default=True, help="Whose thresholds: a name or a file.")
@click.option("--fold", type=click.Choice(["test", "calibration"]), default="test", show_default=True)
@click.option("--model", type=FILE, help="Model file; default: the shipped one.")
@click.option("--provider", type=click.Choice(list(PROVIDERS)), default="cpu", show_default=True, help="What runs the model.")
@click.option("--quick", is_flag=True, help="Leave out the changed pictures, which take most of the time.")
@click.option("--thorough", is_flag=True, help="Only the changed pictures, judged by a thorough scanner; prints, writes nothing.")
@click.option(
    "--left-out",
    multiple=True,
    help="Only attire in this source, all of it, of which model and policy saw nothing (`--leave-out` when they were made).",
)
@click.option("--changed-rows", default=300, show_default=True, help="Changed pictures per column, at most.")
@click.option("--write", is_flag=True, help="Rewrite the figures in the model card and operating_points.json.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(
    data: Path,
    split: Path | None,
    policy_name: str,
    fold: str,
    model: Path | None,
    provider: str,
    quick: bool,
    thorough: bool,
    left_out: tuple[str, ...],
    changed_rows: int,
    write: bool,
    settings_path: Path,
) -> None:
    settings = load_settings(settings_path)
    others = left_out or quick or thorough or model or (provider, fold, policy_name) != ("cpu", "test", "default")
    if write and others:
        raise click.UsageError("--write is for all tables of the shipped model and policy on the test fold: no other choice")
    policy = _policy(policy_name)
    scanner = open_scanner(model, zoom=bool(policy.zoom), provider=provider)
    session = scanner.session
    check_fit(policy, session.spec.identity, score_names(session.spec), session.sha256)
    if left_out:
        grounds = load_manifest(data / "manifest.csv", settings.licences)
        check_sources(grounds, left_out)
        rows = [row for row in grounds if row.source in left_out]
    elif split is None:
        raise click.UsageError("--split is needed to know which pictures are held out")
    else:
        rows = grounds = read_fold(data, split, fold, settings.licences)
    if thorough:
        print(markdown(judged_tables(Scanner(model, policy, provider=provider, thorough=True), rows, grounds, data, changed_rows)))
        return
    measured = Measured(rows, predict(scanner, rows, data))
    if left_out:
        print(markdown([*attire_tables(measured, policy), *cascade_tables(scanner, measured, policy, data)]))
        if not quick:
            print(markdown(judged_tables(Scanner(model, policy, provider=provider), rows, grounds, data, changed_rows)))
        return
    tables = [*attire_tables(measured, policy), *age_tables(measured, policy), *calibration_tables(measured)]
    tables += [verdict_table(measured, policy), *cascade_tables(scanner, measured, policy, data)]
    if not quick:
        tables += small_people_tables(scanner, measured, policy, data)
        tables += [*changed_tables(scanner, measured, policy, data, changed_rows), *edit_tables(scanner, measured, policy, data)]
    print(markdown(tables))
    if write:
        _write_card(markdown(tables), scanner, fold, len(rows))
        _write_operating_points(scanner, measured)


def _policy(name: str) -> Policy:
    try:
        return load_policy(name)
    except PolicyError as problem:
        raise click.UsageError(str(problem)) from problem


def _write_card(text: str, scanner: Scanner, fold: str, count: int) -> None:
    card = shipped_model().with_name("MODEL_CARD.md")
    before, rest = card.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    session = scanner.session
    about = f"Model `{session.spec.identity}`, SHA-256 `{session.sha256}`; fold `{fold}`, {count} pictures.\n"
    card.write_text(f"{before}{START}\n\n{about}\n{text}\n{END}{after}", encoding="utf-8")


def _write_operating_points(scanner: Scanner, measured: Measured) -> None:
    """Counts of right and wrong answers at each policy's thresholds: what a report corrects its counts with.

    None for apparent minors: how many adults are flagged depends on the kind of picture (see the tables), so a rate measured
    on one kind would correct the counts of another by tens of points.
    """
    points = {}
    known = measured.take(measured.column("attire") != "")
    for name in shipped_policies():
        policy = load_policy(name)
        points[name] = {
            "minimal-attire": _counts(known.fired(policy, "minimal-attire"), known.column("attire") == "minimal"),
        }
    spec, session = scanner.session.spec, scanner.session
    texts = {name: load_policy(name).sha256 for name in points}
    content = {"model": spec.identity, "model_sha256": session.sha256, "policy_sha256": texts, "policies": points}
    shipped_model().with_name("operating_points.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _counts(flagged: Mask, truth: Mask) -> dict[str, int]:
    cells = {"tp": flagged & truth, "fn": ~flagged & truth, "tn": ~flagged & ~truth, "fp": flagged & ~truth}
    return {name: int(cell.sum()) for name, cell in cells.items()}


if __name__ == "__main__":
    main()
