"""The same scan on a real Ray cluster of two nodes."""

import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet

from imgsafety import Scanner, SetupError
from imgsafety.source import Selection, find_images

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


def test_an_address_is_scanned_like_a_folder_but_for_its_archives(cluster, pictures, tmp_path, settings):
    (pictures / os.fsdecode(b"\xff.png")).unlink()  # pyarrow cannot list it, and says so
    judge(pictures.as_uri(), (tmp_path / "out").as_uri(), settings)
    rows = {row["path"]: row["verdict"] for row in written(tmp_path / "out")}
    results = Scanner(**settings).scan(find_images([pictures]))
    here = {result.path: result.verdict for result in results if ".zip" not in result.path}
    assert rows.pop(f"{pictures.as_uri()}/more.zip") == "undecided"
    assert Counter(rows.values()) == Counter(here.values())


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


def test_an_output_that_cannot_be_written_says_so(cluster, pictures, tmp_path, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="output"):
        judge(pictures, tmp_path / "file" / "out", settings)


def test_the_command_scans_on_the_cluster_that_is_there(cluster, pictures, tmp_path, settings):
    options = ["--model", settings["model"], "--policy", settings["policy"], "--engine", "ray", "--output", str(tmp_path / "out")]
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
