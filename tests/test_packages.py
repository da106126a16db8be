"""Pictures of Debian packages become rows of the train fold, taken from real `.deb` files."""

import csv
import shutil
import subprocess
import tomllib

import pytest
from click.testing import CliRunner
from PIL import Image

from training.manifest import ManifestError, load_manifest
from training.packages import PACKAGES, Package, main
from training.settings import load_settings
from training.split import load_or_split, split

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")

TABLE = """
[drawn-data]
only = "/pictures/"
never = "/people/"
most = 5
"""
LICENCES = {"own": "CC0", "debian_drawn_data": "GPL-2"}


def save(path, size=(300, 200), mode="RGB", colour="teal"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def debs(tmp_path):
    """A package with four pictures to take, and others: of people, elsewhere, damaged, tiny, thin, a link, a text."""
    root = tmp_path / "root"
    for number in range(3):
        save(root / f"usr/share/pictures/{number}.png")
    save(root / "usr/share/pictures/clear.png", mode="RGBA", colour=(0, 0, 0, 0))
    save(root / "usr/share/pictures/people/one.png")
    save(root / "usr/share/elsewhere/one.png")
    save(root / "usr/share/pictures/tiny.png", (20, 20))
    save(root / "usr/share/pictures/thin.png", (2000, 70))
    (root / "usr/share/pictures/damaged.png").write_bytes(b"\x89PNG damaged")
    (root / "usr/share/pictures/notes.txt").write_text("no picture")
    (root / "usr/share/pictures/link.png").symlink_to("0.png")
    (root / "DEBIAN").mkdir()
    fields = {"Package": "drawn-data", "Version": "1", "Architecture": "all", "Maintainer": "a <a@b>", "Description": "x"}
    (root / "DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    (tmp_path / "debs").mkdir()
    archive = tmp_path / "debs/drawn-data_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, archive], check=True, capture_output=True)
    (tmp_path / "packages.toml").write_text(TABLE)
    return tmp_path / "debs"


@pytest.fixture
def data(tmp_path):
    """A folder of two labelled pictures."""
    folder = tmp_path / "data"
    for name in ("a.png", "b.png"):
        save(folder / "own" / name)
    (folder / "manifest.csv").write_text("path,source,attire\nown/a.png,own,no_person\nown/b.png,own,no_person\n")
    return folder


def add(data, debs, output):
    words = ["--data", data, "--debs", debs, "--output", output, "--packages", debs.parent / "packages.toml"]
    return CliRunner().invoke(main, [*map(str, words)])


def test_a_package_becomes_rows_beside_the_others(data, debs, tmp_path):
    result = add(data, debs, tmp_path / "both")
    assert result.exit_code == 0 and "drawn-data: 4 pictures" in result.output
    rows = load_manifest(tmp_path / "both/manifest.csv", LICENCES)
    assert [row.path for row in rows[:2]] == ["own/a.png", "own/b.png"]
    about = {(row.source, row.licence, row.attire, row.fold) for row in rows[2:]}
    assert about == {("debian_drawn_data", "GPL-2", "not_minimal", "train")}
    sizes = set()
    for row in rows:
        with Image.open(tmp_path / "both" / row.path) as image:
            sizes.add(image.size if row in rows[2:] else None)
    assert len(rows) == 6 and sizes == {None, (240, 160)}


def test_what_is_clear_stands_on_white_or_black(data, debs, tmp_path):
    add(data, debs, tmp_path / "both")
    grounds = []
    for path in sorted((tmp_path / "both/packages").rglob("*.jpg")):
        with Image.open(path) as image:
            grounds.append(image.convert("L").getextrema())
    assert sum(ground in ((0, 0), (255, 255)) for ground in grounds) == 1


def test_its_rows_are_trained_on_and_move_no_other(data, debs, tmp_path):
    add(data, debs, tmp_path / "both")
    alone = split(load_manifest(data / "manifest.csv", {"own": "CC0"}), data)
    both = split(load_manifest(tmp_path / "both/manifest.csv", LICENCES), tmp_path / "both")
    assert both == [*alone, *["train"] * 4]


def test_a_row_keeps_its_fold_whatever_an_earlier_split_says(data, debs, tmp_path):
    add(data, debs, tmp_path / "both")
    rows = load_manifest(tmp_path / "both/manifest.csv", LICENCES)
    (tmp_path / "split.csv").write_text("own/a.png,test\nown/b.png,test\npackages/drawn-data/00000.jpg,test\n")
    assert load_or_split(rows, tmp_path / "both", tmp_path / "split.csv") == ["test", "test", *["train"] * 4]


def test_a_folder_of_the_same_name_is_not_hidden(data, debs, tmp_path):
    (data / "own").rename(data / "packages")
    (data / "manifest.csv").write_text("path,source,attire\npackages/a.png,own,no_person\n")
    result = add(data, debs, tmp_path / "both")
    assert result.exit_code == 2 and "has a folder 'packages' of its own" in result.output
    assert not (tmp_path / "both").exists()


def test_the_same_pictures_are_taken_again(data, debs, tmp_path):
    manifests = []
    for name in ("one", "other"):
        add(data, debs, tmp_path / name)
        pictures = sorted((tmp_path / name / "packages").rglob("*.jpg"))
        manifests.append(((tmp_path / name / "manifest.csv").read_bytes(), [path.read_bytes() for path in pictures]))
    assert manifests[0] == manifests[1]


def test_a_package_that_is_not_there_is_named(data, debs, tmp_path):
    (debs / "drawn-data_1_all.deb").unlink()
    result = add(data, debs, tmp_path / "both")
    assert result.exit_code == 2 and "apt-get download drawn-data" in result.output
    assert not (tmp_path / "both").exists()


def test_a_damaged_package_is_an_error(data, debs, tmp_path):
    (debs / "drawn-data_1_all.deb").write_bytes(b"not an archive")
    result = add(data, debs, tmp_path / "both")
    assert result.exit_code == 1 and "cannot be unpacked" in result.output


def test_the_shipped_table_names_sources_that_the_settings_know():
    packages = [Package(name, **entry) for name, entry in tomllib.loads(PACKAGES.read_text()).items()]
    settings = load_settings(PACKAGES.with_name("settings.toml"))
    assert packages and all(package.source in settings.shares and package.source in settings.licences for package in packages)


def test_a_fold_that_is_none_is_refused(tmp_path):
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "source", "fold"), ("a.png", "own", "holdout")])
    with pytest.raises(ManifestError, match="fold 'holdout' is not one of train, calibration, test"):
        load_manifest(tmp_path / "manifest.csv", {"own": "CC0"})
