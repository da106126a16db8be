"""Reports say what was counted, escape every name, show no picture, and work in a browser without a network."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import zipfile

import numpy as np
import pytest
from PIL import Image

from imgsafety import Scanner, SetupError
from imgsafety.cli import main
from imgsafety.page import points, to_html
from imgsafety.policy import parse_policy
from imgsafety.prevalence import ErrorCounts, load_rates, shipped_rates
from imgsafety.report import compare, find_rates, for_public, list_flagged, percent, summarise
from imgsafety.result import Reason, Result
from imgsafety.runs import scan_run
from imgsafety.source import Selection
from imgsafety.store import Entry, Opinion, Seen, open_to_read, open_to_write
from tests.toy import POLICY

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")
HOSTILE = "<script>document.title='taken'<!--"
RATES = {"minimal-attire": ErrorCounts(90, 10, 190, 10), "apparent-minor": ErrorCounts(95, 5, 180, 20)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_run(path, scanner, *folders):
    with open_to_write(path) as store:
        list(scan_run(scanner, store, folders))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten drawn pictures of each kind, the last a copy of the one before; names that are hostile or not UTF-8; a broken file."""
    from tests.conftest import COLOURS

    folder = tmp_path_factory.mktemp("pictures")
    for kind, colour in COLOURS.items():
        (folder / kind).mkdir()
        for index in range(10):
            Image.new("RGB", (40 + min(index, 8), 40), colour).save(folder / kind / f"{index}.png")
            os.utime(folder / kind / f"{index}.png", (1_766_000_000, 1_766_000_000))
    (folder / "minimal" / "0.png").rename(folder / "minimal" / f"{HOSTILE}.png")
    (folder / "minimal" / "1.png").rename(folder / "minimal" / os.fsdecode(b"\xff\xfe.png"))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, toy_path, toy_policy, pictures):
    return make_run(tmp_path_factory.mktemp("run") / "run.sqlite", Scanner(toy_path, toy_policy), pictures)


@pytest.fixture(scope="module")
def summary(run):
    with open_to_read(run) as store:
        return summarise(store, RATES)


def test_counts_are_those_of_the_pictures(summary):
    assert (summary["files"], summary["counted"], summary["judged"]) == (41, 41, 40)
    assert summary["verdicts"]["review"] == 10 and summary["verdicts"]["undecided"] == 1 and summary["flagged"] == 11
    assert summary["rules"] == {"minimal-attire": 10} and summary["figures"]["minimal_attire"]["count"] == 10


def test_files_with_the_same_bytes_count_once_on_request(run):
    with open_to_read(run) as store:
        once = summarise(store, RATES, "once")
    assert once["counted"] == 37 and once["figures"]["minimal_attire"]["count"] == 9


def test_a_sample_of_files_is_no_sample_of_pictures_counted_once(tmp_path, toy_path, toy_policy, pictures):
    with open_to_write(tmp_path / "a.sqlite") as store:
        list(scan_run(Scanner(toy_path, toy_policy), store, [pictures], Selection(sample=20)))
        assert summarise(store, RATES)["counted"] == 20
        with pytest.raises(SetupError, match="drawn of files"):
            summarise(store, RATES, "once")


def test_a_figure_counts_what_the_rule_about_its_score_counts(tmp_path, toy_path):
    # On white, where half of the red shows as pink, it is nobody, which decides here; on black it set off the other rule.
    policy = parse_policy(POLICY + '''
[[rules]]
name = "nobody"
verdict = "block"
when = { "attire.no_person" = 0.9 }
''')
    Image.new("RGBA", (40, 40), (255, 0, 0, 150)).save(tmp_path / "a.png")
    with open_to_read(make_run(tmp_path / "a.sqlite", Scanner(toy_path, policy), tmp_path)) as store:
        (result,) = store.results()
        assert result.minimal_attire < 0.1
        summary = summarise(store, RATES)
    assert summary["rules"] == {"minimal-attire": 1, "nobody": 1} and summary["figures"]["minimal_attire"]["count"] == 1


def test_nobody_is_no_apparent_minor(summary, run):
    with open_to_read(run) as store:
        seen = [one for one in store.results() if one.apparent_age is not None and one.minor >= 0.3]
    assert summary["figures"]["minor"]["count"] == len(seen) and summary["with_people"] <= 40


def test_the_figures_are_corrected_beside_the_raw_count(summary):
    figure = summary["figures"]["minimal_attire"]
    assert figure["raw"]["value"] == 0.25 and figure["corrected"]["value"] == pytest.approx((0.25 - 0.05) / (0.9 + 0.95 - 1))
    assert figure["corrected"]["low"] < figure["corrected"]["value"] < figure["corrected"]["high"]
    assert summary["figures"]["minor_in_minimal_attire"]["corrected"] is None


def test_the_sentence_holds_the_figures(summary):
    assert "Of 40 pictures" in summary["quote"] and "23.5\N{NO-BREAK SPACE}%" in summary["quote"] and "\n" not in summary["quote"]


def test_apparent_minors_without_an_error_rate_are_counted_and_the_sentence_warns(run):
    with open_to_read(run) as store:
        summary = summarise(store, {"minimal-attire": RATES["minimal-attire"]})
    assert summary["figures"]["minor"]["corrected"] is None and summary["figures"]["minimal_attire"]["corrected"]
    assert "Adults whom the model takes for minors are counted with them" in summary["quote"]
    assert "this count can be far too high" in to_html([summary], [[]])


def test_the_shipped_error_rates_correct_minimal_attire_alone():
    rates = load_rates(shipped_rates(), Scanner().session.sha256, "audit")
    assert set(rates) == {"minimal-attire"}


def test_without_error_rates_nothing_is_corrected_and_it_is_said(run):
    with open_to_read(run) as store:
        rates = find_rates(store)
        summary = summarise(store, rates)
    assert isinstance(rates, str) and summary["figures"]["minimal_attire"]["corrected"] is None
    assert "not corrected" in summary["quote"] and summary["error_rates"] == {"unknown": rates}


def test_a_count_below_the_false_alarms_is_not_corrected_and_the_sentence_says_why(run):
    rates = {"minimal-attire": ErrorCounts(900, 100, 300, 700)}
    with open_to_read(run) as store:
        summary = summarise(store, rates)
    assert summary["figures"]["minimal_attire"]["corrected"] is None
    assert "fewer are flagged than false alarms were" in summary["quote"]


def test_rates_of_the_users_own_must_fit(run, tmp_path):
    (tmp_path / "rates.json").write_text(json.dumps({"model_sha256": "other", "policies": {}}))
    with open_to_read(run) as store, pytest.raises(SetupError, match="another model"):
        find_rates(store, tmp_path / "rates.json")


@pytest.mark.parametrize("counts", [[], {"minimal_attire": {"tp": 9, "fn": 1, "tn": 9, "fp": 1}}])
def test_rates_by_a_name_that_is_none_are_refused(run, tmp_path, counts):
    with open_to_read(run) as store:
        model, policy = store.fact("model"), store.fact("policy")
        content = {"model_sha256": model["sha256"], "policies": {policy["name"]: counts}}
        (tmp_path / "rates.json").write_text(json.dumps(content))
        with pytest.raises(SetupError, match="apparent-minor and minimal-attire"):
            find_rates(store, tmp_path / "rates.json")


def test_folders_and_dates_add_up(summary):
    folders = {row["name"]: row["files"] for row in summary["folders"]}
    assert folders == {"": 1, "minimal": 10, "clothed": 10, "nobody": 10, "child": 10}
    assert {row["name"]: row["files"] for row in summary["dates"]}["2025-12-17"] == 40


def test_a_deep_tree_is_joined_into_few_rows(tmp_path, toy_path, toy_policy, draw):
    for index in range(100):
        (tmp_path / "in" / f"{index % 4}" / f"{index}").mkdir(parents=True)
        draw("clothed").save(tmp_path / "in" / f"{index % 4}" / f"{index}" / "a.png")
    make_run(tmp_path / "run.sqlite", Scanner(toy_path, toy_policy), tmp_path / "in")
    with open_to_read(tmp_path / "run.sqlite") as store:
        assert [row["files"] for row in summarise(store, RATES)["folders"]] == [25, 25, 25, 25]


def test_an_empty_run_has_no_report(tmp_path):
    with open_to_write(tmp_path / "run.sqlite") as store, pytest.raises(SetupError, match="nothing was scanned"):
        summarise(store, RATES)


def page(run, *more):
    with open_to_read(run) as store:
        return to_html([summarise(store, RATES)], [list_flagged(store)])


def test_names_cannot_leave_their_place_in_the_page(run):
    html = page(run)
    assert HOSTILE not in html and "\\u003cscript\\u003edocument.title" in html
    assert not re.search(r"<(img|image|iframe|link|object)\\b", html) and "data:image" not in html


def test_csv_and_parquet_hold_every_file(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `parquet`")
    assert main(["report", str(run), "--csv", str(tmp_path / "a.csv"), "--parquet", str(tmp_path / "a.parquet")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(errors="surrogateescape"))))
    table = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(rows) == len(table) == 41 and [row["sha256"] for row in rows] == [row["sha256"] or "" for row in table]
    assert sum(row["attire.minimal"] > 0.5 for row in table if row["attire.minimal"] is not None) == 10


def test_the_command_writes_all_figures_as_json(run, tmp_path, capsys):
    assert main(["report", str(run), "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["runs"][0]["quote"] in capsys.readouterr().out and content["changes"] is None
    assert "What a scan found" in (tmp_path / "a.html").read_text()


def test_a_public_report_leads_to_no_file_and_says_nothing_of_the_machine(tmp_path, toy_path, toy_policy, pictures):
    shutil.copytree(pictures, tmp_path / "pictures")
    with zipfile.ZipFile(tmp_path / "pictures" / "a.zip", "w") as archive:
        archive.writestr("jane_doe.png", b"a" * 1000)
    damaged = (tmp_path / "pictures" / "a.zip").read_bytes().replace(b"aaa", b"aba", 1)
    (tmp_path / "pictures" / "a.zip").write_bytes(damaged)  # its error names the file
    run = make_run(tmp_path / "mine.sqlite", Scanner(toy_path, toy_policy), tmp_path / "pictures")
    page, figures = tmp_path / "a.html", tmp_path / "a.json"
    assert main(["report", str(run), "--public", "--html", str(page), "--json", str(figures)]) == 0
    with open_to_read(run) as store:
        assert any("jane_doe" in (result.error or "") for result in store.results())
        hashes = {result.sha256 for result in store.results() if result.sha256}
    leads = {*hashes, str(tmp_path), run.name, "minimal/", ".png", "jane_doe"}
    for text in (page.read_text(), figures.read_text()):
        assert "25.0" in text or "0.25" in text
        assert not [lead for lead in leads if lead in text] and "system" not in text.split("<style>")[-1].split("</style>")[-1]
    assert main(["report", str(run), "--public", "--csv", str(tmp_path / "a.csv")]) == 2


def test_a_public_report_says_that_files_were_chosen_by_patterns(tmp_path, toy_path, toy_policy, pictures):
    chosen = Selection(include=("*8.png",), exclude=("secret*",))
    with open_to_write(tmp_path / "a.sqlite") as store:
        list(scan_run(Scanner(toy_path, toy_policy), store, [pictures], chosen))
    page = tmp_path / "a.html"
    assert main(["report", str(tmp_path / "a.sqlite"), "--public", "--html", str(page)]) == 0
    assert "only <code>…</code>; without <code>…</code>" in page.read_text() and "secret" not in page.read_text()


def test_names_of_runs_and_patterns_need_not_be_utf8(tmp_path, toy_path, toy_policy, pictures):
    run, page = tmp_path / os.fsdecode(b"d\xff.sqlite"), tmp_path / "a.html"
    with open_to_write(run) as store:
        list(scan_run(Scanner(toy_path, toy_policy), store, [pictures], Selection(include=(os.fsdecode(b"\xff*"),))))
    assert main(["report", str(run), "--html", str(page)]) == 0 and "\\udcff" in page.read_text()


def test_a_file_that_was_named_itself_has_its_name(tmp_path, toy_path, toy_policy, draw):
    draw("minimal").save(tmp_path / "photo", "PNG")
    with open_to_read(make_run(tmp_path / "a.sqlite", Scanner(toy_path, toy_policy), tmp_path / "photo")) as store:
        assert [row[0] for row in list_flagged(store)] == ["photo"]


def test_what_has_no_date_has_a_row_of_its_own_however_long_the_time(tmp_path, toy_path, toy_policy, draw):
    for month in range(70):
        draw("clothed", (40 + month, 40)).save(tmp_path / f"{month}.png")
        os.utime(tmp_path / f"{month}.png", (month * 31 * 86_400,) * 2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.png", (1980, 0, 0, 0, 0, 0)), b"no picture")
    with open_to_read(make_run(tmp_path / "a.sqlite", Scanner(toy_path, toy_policy), tmp_path)) as store:
        assert [row["name"] for row in summarise(store, RATES)["dates"]][-2:] == ["1975", "unknown"]


def test_a_policy_that_does_not_ask_for_minors_counts_none(tmp_path, toy_path, pictures):
    attire_alone = parse_policy(POLICY.split("[[rules]]")[0] + """[[rules]]
name = "minimal-attire"
verdict = "review"
when = { minimal_attire = 0.5 }
""")
    second = make_run(tmp_path / "second.sqlite", Scanner(toy_path, attire_alone), pictures)
    with open_to_read(second) as store:
        assert "the policy does not ask for them" in summarise(store, RATES)["quote"]


def test_two_runs_are_compared(run, tmp_path, toy_path, pictures):
    slack = parse_policy(POLICY.replace("minimal_attire = 0.5 }", "minimal_attire = 1.0 }"))
    second = make_run(tmp_path / "second.sqlite", Scanner(toy_path, slack), pictures)
    with open_to_read(run) as before, open_to_read(second) as after:
        changes = compare(before, after, [summarise(store, RATES) for store in (before, after)])
    assert {(row["before"], row["after"]): row["pictures"] for row in changes["verdicts"]}[("review", "allow")] == 9
    assert changes["figures"]["minimal_attire"]["raw"]["value"] == -0.25
    assert "differ in policy" in changes["cautions"][0] and "pictures are in both scans" in changes["cautions"][1]
    assert main(["report", str(run), str(second), "--html", str(tmp_path / "two.html")]) == 0
    page = (tmp_path / "two.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert "Two scans compared" in page and len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_pictures_that_were_replaced_are_in_no_comparison(tmp_path, toy_path, toy_policy, draw):
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        draw("clothed", (40 + ord(name), 40)).save(tmp_path / "pictures" / f"{name}.png")
    scanner = Scanner(toy_path, toy_policy)
    first = make_run(tmp_path / "first.sqlite", scanner, tmp_path / "pictures")
    shutil.copy(first, tmp_path / "second.sqlite")
    draw("minimal").save(tmp_path / "pictures" / "a.png")
    second = make_run(tmp_path / "second.sqlite", scanner, tmp_path / "pictures")
    with open_to_read(first) as before, open_to_read(second) as after:
        assert before.changes(after) == [("allow", "allow", 1)]


# In a real browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet.split())
        yield browser
        browser.close()


def visit(browser, path):
    """Open a page; returns it and a list of everything it should not have done."""
    tab, wrong = browser.new_page(), []
    tab.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(path.as_uri())
    return tab, wrong


def column(tab, number):
    return tab.locator(f".flagged tbody tr td:nth-child({number})").all_inner_texts()


def test_the_page_asks_for_nothing_and_shows_names_as_text(browser, run, tmp_path):
    (tmp_path / "a.html").write_text(page(run))
    tab, wrong = visit(browser, tmp_path / "a.html")
    assert tab.title() == "imgsafety: run.sqlite" and f"minimal/{HOSTILE}.png" in column(tab, 1)
    assert wrong == [] and tab.locator("img, image, iframe, video, canvas").count() == 0


def test_the_list_sorts_and_filters_by_keyboard(browser, run, tmp_path):
    (tmp_path / "a.html").write_text(page(run))
    tab, wrong = visit(browser, tmp_path / "a.html")
    head = tab.get_by_role("button", name="path", exact=True)
    head.focus()
    tab.keyboard.press("Enter")
    assert column(tab, 1) == sorted(column(tab, 1), key=str.lower)
    tab.keyboard.press("Enter")
    assert column(tab, 1) == sorted(column(tab, 1), key=str.lower, reverse=True) and len(column(tab, 1)) == 11
    tab.get_by_label("Find in path").fill("minimal 7.png")
    tab.get_by_text("1–1 of 1", exact=True).first.wait_for()
    tab.get_by_label("Find in path").fill("")
    tab.get_by_label("Verdict").select_option("undecided")
    assert column(tab, 1) == ["broken.jpg"] and wrong == []


def write_many(path, count):
    """A run of flagged files without files."""
    heads = {"attire": dict.fromkeys(("no_person", "clothed", "revealing", "minimal"), 0.25)}
    spec = {"heads": [{"name": "attire", "labels": list(heads["attire"])}]}
    facts = {"model": {"name": "toy 1", "sha256": "0" * 64, "spec": json.dumps(spec)}, "settings": {}, "versions": []}
    facts |= {"policy": {"name": "toy", "sha256": "0", "rules": []}, "started": "", "finished": ""}
    facts |= {"selection": {"paths": ["/in"], "include": [], "exclude": [], "max_files": None, "sample": None}}
    opinion = Opinion((None,), np.full((1, 4), 0.25, np.float32), 0)
    reasons = (Reason("minimal-attire", "review", {}),)

    def entry(index):
        seen = Seen(b"/in/%d/%07d.png" % (index % 50, index), "1", 1, 10**18)
        sha256 = hashlib.sha256(b"%d" % index).hexdigest()
        numbers = (index % 1000 / 1000, 0.1, 0.2, 30.0, 20.0, 40.0)
        return Entry(seen, Result(None, "review", reasons, None, sha256, None, *numbers, heads), opinion)

    with open_to_write(path) as store:
        store.set_facts(facts)
        for start in range(0, count, 5000):
            store.write([entry(index) for index in range(start, min(start + 5000, count))])
    return path


def test_a_hundred_thousand_rows_stay_usable(browser, tmp_path):
    (tmp_path / "a.html").write_text(page(write_many(tmp_path / "run.sqlite", 100_000)))
    tab, wrong = visit(browser, tmp_path / "a.html")
    assert len(column(tab, 1)) == 100 and (tmp_path / "a.html").stat().st_size < 25_000_000
    tab.get_by_role("button", name="minor", exact=True).click(timeout=5000)
    tab.get_by_role("button", name="path", exact=True).click(timeout=5000)
    tab.get_by_label("Find in path").fill("0099999")
    tab.get_by_text("1–1 of 1", exact=True).first.wait_for(timeout=5000)
    assert column(tab, 1) == ["49/0099999.png"] and wrong == []


def test_small_shares_and_nearly_whole_ones_are_told_from_none_and_all():
    shown = [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0, 0.00003, 0.0042, 0.5, 0.99997, 1)]
    assert shown == ["0.0 %", "0.0030 %", "0.42 %", "50.0 %", "99.997 %", "100.0 %"]
    assert points(-0.0000042) == "\N{MINUS SIGN}0.00042" and points(0.25) == "+25.00"


def test_a_public_report_has_no_row_of_few_files(run):
    with open_to_read(run) as store:
        days = [{"name": "2024-05-01", "files": 8}, {"name": "2024-06", "files": 4}]
        summary = summarise(store, {}) | {"dates": [{"name": "2001-09-09", "files": 1, "flagged": 1}, *days]}
    assert for_public(summary)["dates"] == [{"name": "(all others)", "files": 1, "flagged": 1}, {"name": "2024", "files": 12}]


@pytest.mark.parametrize(
    "damage",
    ["UPDATE pictures SET reasons = 'x'", "UPDATE pictures SET minimal_attire = 'x'", "UPDATE pictures SET verdict = 'ok'"],
)
def test_a_damaged_run_is_no_report(run, tmp_path, capsys, damage):
    run = shutil.copy(run, tmp_path)
    with sqlite3.connect(run) as connection:
        connection.execute(damage)
    connection.close()
    assert main(["report", str(run)]) == 2 and "is damaged" in capsys.readouterr().err
