"""Relative paths, variables and folders in a run and its checkpoints, as the command lines treat them."""

import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from mdistiller import paths


@pytest.fixture
def trained(command, place):
    """A run in `work`, seen from `elsewhere`."""
    status, out, err = command("train", "--cfg", "run.yaml", "EXPERIMENT.NAME", "first")
    assert (status, err) == (0, "")
    (place / "elsewhere").mkdir()
    return place, out


def test_a_run_works_from_any_directory(command, trained, monkeypatch):
    place, out = trained
    assert f"\ndata {place / 'images'}\n" in out
    assert f"\nteacher resnet14 from {place / 'teacher.pth'}\n" in out
    monkeypatch.chdir(place / "elsewhere")
    checkpoint = place / "output/first/student_best.pth"
    status, out, err = command("eval", "-m", "resnet8", "-c", checkpoint)
    assert (status, err) == (0, "")
    assert len(set(re.findall(r"(?:deployed|recorded)  (top-1 [\d.]+)", out))) == 1
    assert command("train", "--cfg", place / "output/first/config.yaml", "EXPERIMENT.NAME", "again")[0] == 0
    assert Path("output/again/student_best.pth").is_file()

    os.rename(place / "images", place / "moved")
    status, out, err = command("eval", "-m", "resnet8", "-c", checkpoint)
    assert (status, err.count("\n")) == (2, 1)
    assert f"note: the checkpoint was trained on data in {place / 'images'}, which is not here" in out
    assert command("eval", "-m", "resnet8", "-c", checkpoint, "DATASET.ROOT", "../moved")[0] == 0


def test_what_lies_in_the_clone_is_not_taken(command, place, monkeypatch):
    """A teacher trained in the clone, a folder of images there: neither serves a run in another directory."""
    monkeypatch.setattr(paths, "SHIPPED", place)
    (place / "work").mkdir()
    monkeypatch.chdir(place / "work")
    run = ("train", "--cfg", "../run.yaml")
    status, _, err = command(*run)
    assert (status, err.count("\n")) == (2, 1)
    assert "no checkpoint at teacher.pth" in err
    status, _, err = command(*run, "DISTILLER.TEACHER_WEIGHTS", "../teacher.pth")
    assert (status, err.count("\n")) == (2, 1)
    assert "DATASET.ROOT images is not a folder" in err


def test_a_home_and_variables_in_a_configuration(command, place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("IMAGES", str(place / "images"))
    (place / "vars.yaml").write_text(
        "_BASE_: $HOME/run.yaml\n"
        "DATASET: {ROOT: $IMAGES}\n"
        "DISTILLER: {TEACHER_WEIGHTS: ~/teacher.pth}\n"
        "LOG: {PREFIX: '${HOME}/runs'}\n"
        "TEACHER_CACHE: $HOME/cached\n"
    )
    status, _, err = command("train", "--cfg", "~/vars.yaml", "EXPERIMENT.NAME", "a")
    assert (status, err) == (0, "")
    stored = yaml.safe_load((place / "runs/a/config.yaml").read_text())
    assert stored["DATASET"]["ROOT"] == str(place / "images")
    assert stored["DISTILLER"]["TEACHER_WEIGHTS"] == str(place / "teacher.pth")
    assert stored["TEACHER_CACHE"] == str(place / "cached")
    assert list((place / "cached").iterdir())
    assert not [path for path in place.rglob("*") if "$" in path.name or path.name == "~"]
    config = torch.load(place / "runs/a/student_best.pth", weights_only=True)["config"]
    assert config["DATASET"]["ROOT"] == str(place / "images")


KEYS = (
    *("DATASET.ROOT", "DISTILLER.TEACHER_WEIGHTS", "LOG.PREFIX", "TEACHER_CACHE"),
    *("PLUGINS", "EXPERIMENT.REFERENCE"),
)


@pytest.mark.parametrize("key", KEYS)
def test_a_variable_that_is_not_set_is_one_line(command, place, monkeypatch, key):
    monkeypatch.delenv("NOT_SET", raising=False)
    before = set(place.rglob("*"))
    value = "[$NOT_SET/x.py]" if key in ("PLUGINS", "EXPERIMENT.REFERENCE") else "$NOT_SET/x"
    status, _, err = command("train", "--cfg", "run.yaml", key, value)
    assert (status, err.count("\n")) == (2, 1)
    assert "names the environment variable NOT_SET, which is not set or empty; set it, or give the full path" in err
    assert set(place.rglob("*")) == before
