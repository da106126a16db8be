"""Learning curves, what more pictures or more origins give: `python -m training.curve --data DIR --output RUN --origin SOURCE`.

Two questions are asked of an origin of which training sees nothing, or a share: is somebody in minimal attire, and, of clothed
people, is somebody under 18? Regressions answer them, on features that no label of ours has touched: those of ImageNet's
MobileNetV2 and, with `--encoder`, what CLIP's image tower sees. A point of a curve takes seconds. `--harmless` asks what more
harmless pictures give: how many things and generated portraits a regression takes for minimal attire. Years around 18 are not in
such features; for them `--model` takes networks that were trained on a share of the faces each (`training.train --settings
training/curve.toml --share SHARE`) and judges those of the test fold.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from imgsafety.preprocess import to_pixels
from training.encoder import embed
from training.heads import ATTIRE, BORROWED
from training.manifest import Row, check_sources, load_manifest
from training.measure import Values, auroc, auroc_text, recall_at
from training.model import build
from training.predict import open_scanner, predict, read_image
from training.settings import FILE, Settings, load_settings
from training.split import load_or_split, some_of
from training.tables import Measured, Table, markdown

SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)
DRAWS = 3  # of each share below 1: their mean, and the least and the greatest
# As for the evidence that is shipped: small weights rest on many features, and carry over (docs/experiments.md).
INVERSE_DECAY = 1e-3
CLASSES_REPEATED = 320  # as often as there are features, so that a regression gives it as much room as to all of them
BATCH = 32

Answer = Callable[[Row], bool | None]  # what a row's labels say; none where they do not, or may not be asked


def minimal_attire(row: Row) -> bool | None:
    """Minimal, against clothed or nobody."""
    return None if row.attire in ("", "revealing") else row.attire == "minimal"


def somebody_under_18(row: Row) -> bool | None:
    """Of clothed people whose age was judged by the whole picture: exposed ones teach no age, and faces are another question."""
    return row.minor if row.age and row.age[0] != row.age[1] and row.attire in ("clothed", "not_minimal") else None


# Which of the pictures that are held out are told apart with `--harmless`.
HARMLESS: dict[str, Callable[[Row], bool]] = {
    "things": lambda row: row.framing == "object",
    "generated portraits": lambda row: row.medium == "generated",
    "all others": lambda row: row.framing != "object" and row.medium != "generated",
}
FOUND = 0.98  # of the minimal pictures that are held out, where false alarms are counted

QUESTIONS: tuple[Answer, ...] = (minimal_attire, somebody_under_18)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the split and for what an encoder saw.")
@click.option("--imagenet", type=FILE, help="Keras MobileNetV2 safetensors; default: torchvision's.")
@click.option("--encoder", type=FILE, help="ONNX image tower of CLIP, for its curves.")
@click.option("--origin", "origins", multiple=True, help="A source to ask about. As often as you like.")
@click.option("--harmless", is_flag=True, help="Ask what more harmless pictures give.")
@click.option("--model", "models", type=FILE, multiple=True, help="Trained on a share of faces.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(
    data: Path,
    output: Path,
    imagenet: Path | None,
    encoder: Path | None,
    origins: tuple[str, ...],
    harmless: bool,
    models: tuple[Path, ...],
    settings_path: Path,
) -> None:
    settings = load_settings(settings_path)
    torch.set_num_threads(settings.threads)
    rows = load_manifest(data / "manifest.csv", settings.licences)
    check_sources(rows, origins)
    if not (origins or harmless or models):
        raise click.UsageError("nothing is asked: name an --origin or a --model, or ask for --harmless")
    folds = dict(zip((row.path for row in rows), load_or_split(rows, data, output / "split.csv"), strict=True))
    answered = [row for row in rows if any(answer(row) is not None for answer in QUESTIONS)]
    asked = [one for one in product(origins, QUESTIONS) if _can_ask(*one, answered, folds)]
    if unasked := set(origins) - {source for source, _ in asked}:
        raise click.UsageError(f"of {sorted(unasked)[0]} nothing can be asked: it, held out, and the others need both answers")
    if harmless and not all(_both(minimal_attire, side) for side in _taught_and_held(answered, folds)):
        raise click.UsageError("of harmless pictures nothing can be asked: the train fold, and the others, need minimal ones too")
    for name, features in _seen(answered, data, output, imagenet, encoder, settings) if asked or harmless else ():
        known = dict(zip((row.path for row in answered), features, strict=True))
        for source, answer in asked:
            print(markdown([origin_curve(answer, source, name, answered, known, folds)]), flush=True)
        if harmless:
            print(markdown([harmless_curve(name, answered, known, folds)]), flush=True)
    if models:
        faces = [row for row in rows if row.framing == "face" and row.age and row.age[0] == row.age[1]]
        print(markdown([face_curve(models, [row for row in faces if folds[row.path] == "test"], data)]))


def _seen(
    rows: Sequence[Row], data: Path, output: Path, imagenet: Path | None, encoder: Path | None, settings: Settings
) -> Iterator[tuple[str, Values]]:
    """Whose features they are, and these of each row, `(rows, features)`."""
    yield "ImageNet's network", imagenet_features(rows, data, imagenet, settings.size)
    if encoder is not None:
        yield "CLIP", embed(encoder, rows, data, output, settings.threads).astype(np.float64)


@torch.no_grad()
def imagenet_features(rows: Sequence[Row], data: Path, weights: Path | None, size: int) -> Values:
    """What ImageNet's network sees, `(rows, features)`: the mean over places of the layer that attire's evidence reads, and the
    mean logit of the classes that speak for `minimal`, repeated.
    """
    network = build("mobilenet_v2", weights, 0.0, own_layers=1, last_layers={ATTIRE.name: 18}, borrowed={ATTIRE.name: 1.0}).eval()
    network.to(memory_format=torch.channels_last)
    classes = list(BORROWED[ATTIRE.name]["minimal"])
    found = []
    for start in track(range(0, len(rows), BATCH), "What ImageNet's network sees"):
        batch = rows[start : start + BATCH]
        pixels = torch.from_numpy(np.stack([to_pixels(read_image(row, data, size), size) for row in batch]))
        seen = network.features(pixels, [ATTIRE.name])[ATTIRE.name]
        logit = network.classes_of(ATTIRE.name)(seen)[:, classes].mean(dim=1, keepdim=True)
        found.append(torch.cat([seen.mean(dim=(2, 3)), logit.expand(-1, CLASSES_REPEATED)], dim=1).numpy())
    return np.concatenate(found).astype(np.float64)


def origin_curve(
    answer: Answer, source: str, features: str, rows: Sequence[Row], known: dict[str, Values], folds: dict[str, str]
) -> Table:
    """How well a regression answers a question about pictures of one source, by how many of which sources taught it.

    Pictures of the train fold teach. All of the source are judged where none of them taught, else those of the other folds.
    """
    others, taught, held = _parts(source, [row for row in rows if answer(row) is not None], folds)
    own = taught + held

    def line(what: str, draws: Sequence[Sequence[Row]], judged: Sequence[Row]) -> tuple[str, ...]:
        answers = [_ask(answer, draw, judged, known) for draw in draws]
        areas = [auroc(*one) for one in answers]
        spread = f" ({min(areas):.3f} to {max(areas):.3f})" if len(draws) > 1 else ""
        found = np.mean([recall_at(*one, 0.05).value for one in answers])
        return what, _count(answer, draws[0]), f"{np.mean(areas):.3f}{spread}", f"{found:.0%}"

    return Table(
        f"{answer.__name__.replace('_', ' ').capitalize()} in {source}, by what {features} sees",
        f"Judged: {_count(answer, own)}; where some of {source} taught, {_count(answer, held)}. "
        f"Shares below 1: mean of {DRAWS} draws, the least and the greatest, and how many taught in the first.",
        ("taught by", "pictures", "AUROC", "recall at 5 % false positives"),
        [
            *(line(f"{share:g} of the other sources", draws, own) for share in SHARES if (draws := _draws(others, share, answer))),
            *(line(f"the others but {left_out}", [_not_of(left_out, others)], own) for left_out in _spare(answer, others)),
            line("the others, judged as below", [others], held),
            *(line(f"the others and {share:g} of it", [others + draw for draw in _draws(taught, share)], held) for share in SHARES),
        ],
    )


def harmless_curve(features: str, rows: Sequence[Row], known: dict[str, Values], folds: dict[str, str]) -> Table:
    """How many harmless pictures a regression takes for minimal attire, by how many others than minimal ones taught it."""
    asked = [row for row in rows if minimal_attire(row) is not None]
    taught, held = _taught_and_held(asked, folds)
    minimal, others = ([row for row in taught if minimal_attire(row) is yes] for yes in (True, False))
    harmless = [row for row in held if not minimal_attire(row)]
    belonging = {name: np.array([belongs(row) for row in harmless]) for name, belongs in HARMLESS.items()}
    groups = {name: members for name, members in belonging.items() if members.any()}

    def flagged(draw: Sequence[Row]) -> list[float]:
        found, scores = _ask(minimal_attire, [*minimal, *draw], held, known)
        return [float((scores[members] >= np.quantile(found, 1 - FOUND)).mean()) for members in groups.values()]

    def line(share: float) -> tuple[str, ...]:
        draws = _draws(others, share)
        return f"{share:g} of the others", str(len(draws[0])), *map(_mean_and_ends, zip(*map(flagged, draws), strict=True))

    return Table(
        f"Harmless pictures taken for minimal attire, by what {features} sees",
        f"Where {FOUND:.0%} of {len(held) - len(harmless)} minimal pictures that are held out are found; {len(minimal)} taught. "
        f"Shares below 1: mean of {DRAWS} draws, the least and the greatest.",
        ("taught by", "pictures", *(f"{name} ({members.sum()})" for name, members in groups.items())),
        [line(share) for share in SHARES],
    )


def _mean_and_ends(shares: Sequence[float]) -> str:
    ends = f" ({min(shares):.1%} to {max(shares):.1%})" if len(shares) > 1 else ""
    return f"{np.mean(shares):.1%}{ends}"


def face_curve(models: Sequence[Path], faces: Sequence[Row], data: Path) -> Table:
    """How well networks know ages of faces; each was trained on a share of them, which its folder's name tells."""
    lines = []
    for model in models:
        measured = Measured(faces, predict(open_scanner(model), faces, data))
        age, under = measured.exact_age, measured.under(18)
        teens, young = (age >= 13) & (age < 18), (age >= 18) & (age < 25)
        ranked = auroc_text(under[age < 18], under[age >= 18]), auroc_text(under[teens], under[young])
        lines.append((model.parent.name, *ranked, f"{np.abs(measured.age - (age + 0.5)).mean():.2f}"))
    columns = ("network", "under 18 against 18 and older", "13 to 17 against 18 to 24", "mean error of the age in years")
    return Table("Faces of the test fold", "Each network is named by its folder. AUROC, with intervals.", columns, lines)


def _ask(answer: Answer, teachers: Sequence[Row], judged: Sequence[Row], known: dict[str, Values]) -> tuple[Values, Values]:
    """Scores of the judged pictures of which the answer is yes, and no."""
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_DECAY, max_iter=1000))
    regression.fit(np.stack([known[row.path] for row in teachers]), [answer(row) for row in teachers])
    scores = regression.decision_function(np.stack([known[row.path] for row in judged]))
    truth = np.array([answer(row) for row in judged])
    return scores[truth], scores[~truth]


def _draws(rows: Sequence[Row], share: float, answer: Answer | None = None) -> list[list[Row]]:
    """Some draws of this share; answer: only those in which both answers are."""
    draws = [some_of(rows, share, f"draw {draw} of ") for draw in range(DRAWS if share < 1 else 1)]
    return [draw for draw in draws if answer is None or _both(answer, draw)]


def _spare(answer: Answer, rows: Sequence[Row]) -> Iterator[str]:
    """Each source without which both answers are still there."""
    return (source for source in sorted({row.source for row in rows}) if _both(answer, _not_of(source, rows)))


def _can_ask(source: str, answer: Answer, rows: Sequence[Row], folds: dict[str, str]) -> bool:
    others, _, held = _parts(source, rows, folds)
    return _both(answer, held) and _both(answer, others)


def _parts(source: str, rows: Sequence[Row], folds: dict[str, str]) -> tuple[list[Row], list[Row], list[Row]]:
    """Of the other sources what may teach; of this one what may teach, and what is held out."""
    own = [row for row in rows if row.source == source]
    return _taught_and_held(_not_of(source, rows), folds)[0], *_taught_and_held(own, folds)


def _taught_and_held(rows: Sequence[Row], folds: dict[str, str]) -> tuple[list[Row], list[Row]]:
    """The rows of the train fold, and the others."""
    train, others = ([row for row in rows if (folds[row.path] == "train") is teaches] for teaches in (True, False))
    return train, others


def _both(answer: Answer, rows: Sequence[Row]) -> bool:
    return {answer(row) for row in rows} >= {True, False}


def _not_of(source: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.source != source]


def _count(answer: Answer, rows: Sequence[Row]) -> str:
    yes = sum(bool(answer(row)) for row in rows)
    return f"{yes} against {len(rows) - yes}"


if __name__ == "__main__":
    main()
