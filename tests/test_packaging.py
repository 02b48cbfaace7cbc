"""The source distribution and the wheel contain all shipped files, and the installed wheel runs in any folder."""

import email
import re
import shutil
import tarfile
import zipfile

import pytest

from tests.conftest import REPO
from tests.processes import run_python

SOURCES = ("setup.py", "pyproject.toml", "requirements.txt", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("mdistiller", "configs", "data/fashion-mnist-part", "download_ckpts/demo")

pytestmark = pytest.mark.slow


def python(code, *arguments, cwd, **environment):
    status, out, err = run_python("-c", code, *arguments, folder=cwd, **environment)
    assert status == 0, (out, err)
    return out


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution. Nothing is written to the repository."""
    place = tmp_path_factory.mktemp("packaging")
    for name in FOLDERS:
        shutil.copytree(REPO / name, place / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(REPO / name, place / "clone" / name)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    python(build, "build_sdist", place, cwd=place / "clone")
    [archive] = place.glob("*.tar.gz")
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.13 warns without one
    shutil.unpack_archive(archive, place / "unpacked", **options)
    [sources] = (place / "unpacked").iterdir()
    python(build, "build_wheel", place, cwd=sources)
    [wheel] = place.glob("*.whl")
    return wheel


def test_the_wheel_holds_code_and_every_shipped_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        f"mdistiller/shipped/{path.relative_to(REPO).as_posix()}"
        for folder in FOLDERS[1:]
        for path in (REPO / folder).rglob("*")
        if path.is_file()
    }
    assert len(shipped) > 100
    assert {name for name in names if name.startswith("mdistiller/shipped/")} == shipped
    code = {path.relative_to(REPO).as_posix() for path in (REPO / "mdistiller").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code
    assert {"mdistiller/report/template/page.html", "mdistiller/report/template/page.css"} <= names


def test_its_metadata_name_commands_and_requirements(wheel):
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    needs = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    listed = re.findall(r"^(\w+>=[\d.]+)", (REPO / "requirements.txt").read_text(), flags=re.M)
    assert [
        need.replace(" ", "") for need in needs if "extra" not in need
    ] == listed  # old versions of setuptools insert spaces
    assert len(listed) >= 9
    commands = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert set(re.findall(r"^(\S+) =", commands, flags=re.M)) == {
        "mdistiller-train",
        "mdistiller-eval",
        "mdistiller-export",
        "mdistiller-fetch-ckpts",
        "mdistiller-predict",
        "mdistiller-report",
        "mdistiller-make-shards",
        "mdistiller-study",
    }


def test_it_trains_and_evaluates_in_an_empty_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for folder in ("empty", "elsewhere"):
        (tmp_path / folder).mkdir()

    def call(code, *arguments, folder):
        return python(code, *arguments, cwd=tmp_path / folder, PYTHONPATH=str(tmp_path / "site"))

    # the demo's teacher and reference exist; training only its student is cheaper
    demo = "from mdistiller.engine.validate import load_valid_cfg; load_valid_cfg('demo/sfakd')"
    train = f"{demo}; from mdistiller.commands.train import command; command()"
    quick = "SOLVER.EPOCHS 1 DATASET.TRAIN_FRACTION 0.02"
    out = call(train, "--cfg", "demo/vanilla", *quick.split(), folder="empty")
    assert f"data {tmp_path / 'site/mdistiller/shipped/data/fashion-mnist-part'}\n" in out
    best = re.search(r"best top-1 ([\d.]+)", out)[1]
    checkpoint = tmp_path / "empty/output/demo_vanilla/student_best.pth"
    evaluate = "from mdistiller.commands.eval import command; command()"
    assert f"deployed  top-1 {best}" in call(evaluate, "-m", "resnet8", "-c", checkpoint, folder="elsewhere")
