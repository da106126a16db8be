"""The same scan on a real Ray cluster of two nodes."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet

from imgsafety import Scanner, SetupError
from imgsafety.source import Selection, find_images
from tests.toy import write_toy_model

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
from ray.cluster_utils import Cluster  # noqa: E402  # only where ray is

from imgsafety.integrations.ray import scan_ray  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Ray's and pandas' own


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, as two machines would join."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    ray.shutdown()
    del os.environ["RAY_ADDRESS"]
    cluster.shutdown()


@pytest.fixture
def pictures(tmp_path, draw):
    """Files of all kinds: in folders, in an archive, damaged, of a name that is not UTF-8, and what is no picture."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for index, kind in enumerate(("minimal", "clothed", "nobody", "child") * 5):
        draw(kind, (16 + index, 24)).save(folder / ("deep" if index % 3 else "") / f"{index:02}.png")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for path in sorted((folder / "deep").iterdir())[:4]:
            archive.write(path, path.name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("not a picture")
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "00.png").read_bytes())
    return folder


def judge(folder, output, settings, selection=None):
    parts, counts = scan_ray([str(folder)], str(output), selection or Selection(), settings, files_per_part=5)
    return parts, sum(counts, Counter())


def written(output):
    return [row for path in sorted(Path(output).glob("part-*.parquet")) for row in parquet.read_table(path).to_pylist()]


@pytest.fixture
def settings(toy_path, toy_policy_path):
    return {"model": str(toy_path), "policy": str(toy_policy_path)}


def test_a_cluster_of_two_nodes_gives_the_verdicts_of_one_machine(cluster, pictures, tmp_path, settings):
    parts, counts = judge(pictures, tmp_path / "out", settings)
    here = list(Scanner(**settings).scan(find_images([pictures])))
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert parts == 6
    assert [row["verdict"] for row in written(tmp_path / "out")] == [result.verdict for result in here]
    assert [row["minor"] for row in written(tmp_path / "out")] == pytest.approx([result.minor for result in here], abs=1e-6)
    assert counts == Counter(result.verdict for result in here) + Counter(flagged=sum(result.flagged for result in here))


def test_an_address_is_scanned_like_a_folder_but_for_its_archives(cluster, pictures, tmp_path, settings, draw):
    (pictures / os.fsdecode(b"\xff.png")).unlink()  # pyarrow cannot list it, and says so
    for number, name in enumerate(("a b.png", "a#b.png", "a?b.png", "a%41.png", "ä[1].png", "without ending")):
        draw(("minimal", "clothed")[number % 2]).save(pictures / name, "PNG")
    shutil.copy(pictures / "more.zip", pictures / "renamed.dat")
    judge(pictures.as_uri(), (tmp_path / "out").as_uri(), settings)
    rows = {row["path"]: row["verdict"] for row in written(tmp_path / "out")}
    results = Scanner(**settings).scan(find_images([pictures]))
    archives = {"more.zip", "renamed.dat"}
    here = {f"file://{result.path}": result.verdict for result in results if not archives & set(Path(result.path).parts)}
    assert [rows.pop(f"file://{pictures / name}") for name in archives] == ["undecided"] * 2
    assert rows == here


def test_excluded_folders_are_not_entered_at_an_address(cluster, pictures, tmp_path, settings):
    (pictures / os.fsdecode(b"\xff.png")).unlink()
    judge(pictures.as_uri(), tmp_path / "out", settings, Selection(exclude=("deep", "*.zip")))
    assert len(written(tmp_path / "out")) == len(list(pictures.glob("*.[pj][np]g")))


def test_names_that_an_archive_holds_twice_are_all_judged(cluster, tmp_path, settings, draw):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "twice.zip", "w") as archive:
        for name, kind in (("a.png", "clothed"), ("/a.png", "minimal"), ("a.png#1", "clothed"), ("//a.png", "minimal")):
            draw(kind).save(tmp_path / "one.png")
            archive.writestr(zipfile.ZipInfo(name), (tmp_path / "one.png").read_bytes())
    _, counts = judge(tmp_path / "in", tmp_path / "out", settings)
    assert (counts["allow"], counts["review"]) == (2, 2)


def test_files_that_could_not_be_read_are_tried_again(cluster, pictures, tmp_path, settings):
    away = pictures / "05.png" if (pictures / "05.png").exists() else next(pictures.glob("*.png"))
    target = tmp_path / "elsewhere.png"
    away.rename(target)
    away.symlink_to(target)
    target.rename(tmp_path / "gone.png")
    _, first = judge(pictures, tmp_path / "out", settings)
    (tmp_path / "gone.png").rename(target)
    _, second = judge(pictures, tmp_path / "out", settings)
    assert first["undecided"] - second["undecided"] == 1


def test_the_same_command_goes_on_and_judges_only_what_is_missing(cluster, pictures, tmp_path, settings):
    output = tmp_path / "out"
    _, counts = judge(pictures, output, settings)
    missing, kept = output / "part-00001.parquet", output / "part-00002.parquet"
    before, rows = kept.stat().st_mtime_ns, written(output)
    missing.unlink()
    assert judge(pictures, output, settings)[1] == counts
    assert kept.stat().st_mtime_ns == before
    assert written(output) == rows


def test_another_policy_is_refused(cluster, pictures, tmp_path, settings):
    judge(pictures, tmp_path / "out", settings)
    other = tmp_path / "other.toml"
    other.write_text(Path(settings["policy"]).read_text().replace("0.5", "0.6"))
    with pytest.raises(SetupError, match="holds verdicts of policy 'toy'"):
        judge(pictures, tmp_path / "out", settings | {"policy": str(other)})


def test_a_selection_and_a_member_that_is_gone(cluster, pictures, tmp_path, settings):
    output = tmp_path / "out"
    _, counts = judge(pictures, output, settings, Selection(include=("more.zip/*",)))
    assert counts["undecided"] == 0
    (output / "part-00000.parquet").unlink()
    (pictures / "more.zip").unlink()
    _, again = judge(pictures, output, settings, Selection(include=("more.zip/*",)))
    assert again == Counter(undecided=4, flagged=4)


def test_a_machine_with_another_model_is_refused(cluster, pictures, tmp_path, settings):
    model = write_toy_model(tmp_path / "toy.onnx")
    _, counts = scan_ray([str(pictures)], str(tmp_path / "out"), Selection(), settings | {"model": str(model)})
    write_toy_model(model, factor=2.0)  # as if the others had another file under this name
    with pytest.raises(SetupError, match="was made with model sha256"):
        list(counts)


def test_results_without_their_run_are_not_taken_for_done(cluster, pictures, tmp_path, settings):
    judge(pictures, tmp_path / "out", settings)
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(SetupError, match="holds results, but no run"):
        judge(pictures, tmp_path / "out", settings)


def test_a_part_of_another_scan_is_refused(cluster, pictures, tmp_path, settings):
    judge(pictures, tmp_path / "one", settings)
    judge(pictures, tmp_path / "two", settings)
    shutil.copy(tmp_path / "one" / "part-00001.parquet", tmp_path / "two")
    with pytest.raises(SetupError, match="of another scan"):
        judge(pictures, tmp_path / "two", settings)


@pytest.mark.parametrize(
    ("place", "output", "message"),
    [
        ("in", "file/out", "file/out"),
        ("file:///not/there", "out", "file:///not/there: no such file or folder"),
        ("nowhere://bucket/in", "out", "nowhere://bucket/in cannot be read"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(cluster, tmp_path, settings, draw, place, output, message):
    (tmp_path / "in").mkdir()
    draw("clothed").save(tmp_path / "in" / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=message):
        judge(place if "://" in place else tmp_path / place, tmp_path / output, settings)


def test_more_threads_than_any_machine_has_are_refused(cluster, pictures, tmp_path, settings):
    with pytest.raises(SetupError, match="no machine of the cluster has 64 cores"):
        judge(pictures, tmp_path / "out", settings | {"workers": 64})


def test_the_command_scans_on_the_cluster_that_is_there(cluster, pictures, tmp_path, settings):
    options = ["--model", settings["model"], "--policy", settings["policy"], "--engine", "ray", "--output", str(tmp_path / "out")]
    for _ in range(2):  # the second time finds everything done
        done = subprocess.run(
            [sys.executable, "-m", "imgsafety", "scan", str(pictures), *options], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert "26 pictures: " in done.stderr
    assert len(written(tmp_path / "out")) == 26


def test_without_an_output_the_command_is_refused(tmp_path):
    command = [sys.executable, "-m", "imgsafety", "scan", str(tmp_path), "--engine", "ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--engine ray needs --output" in done.stderr
