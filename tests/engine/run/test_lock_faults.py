"""Faults around a run's folder that must not hide another one."""

import os

import pytest

from mdistiller import distributed, torchrun
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.log.logger import RunLogger
from mdistiller.engine.run.folder import RunFolder
from mdistiller.engine.run.lock import locked
from mdistiller.errors import UserError


def test_a_full_disk_does_not_hide_the_fault_within(tmp_path, monkeypatch):
    def full(handle, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="first fault"), locked(tmp_path / "run"):
        raise UserError("first fault")
    with locked(tmp_path / "run"):
        pass


def test_a_circle_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="cannot write to"), locked(tmp_path / "a"):
        pass


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b'{"epoch": "one"}\n', b'{"epoch": null}\n', b"[1]\n"])
def test_rows_that_are_none(tmp_path, content):
    folder = RunFolder(str(tmp_path), "run")
    folder.path.mkdir()
    folder.metrics.write_bytes(content)
    with pytest.raises(UserError, match="is not a row of a run|cannot be read"):
        RunLogger(folder, load_cfg(None, ["LOG.WANDB", "False"]), 1)
    assert folder.metrics.read_bytes() == content


def test_yaml_without_an_end(tmp_path):
    (tmp_path / "deep.yaml").write_text("A: " + "[" * 5000)
    with pytest.raises(UserError, match="is not valid YAML"):
        load_cfg(str(tmp_path / "deep.yaml"))


def test_a_scheduler_that_sets_a_part_of_the_variables(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert not torchrun.in_group()  # as some schedulers do for a single process
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UserError, match="WORLD_SIZE is set but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start"):
        torchrun.in_group()


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("MASTER_PORT", "abc"), ("RANK", "x")])
def test_an_environment_that_torchrun_did_not_make(monkeypatch, name, value):
    whole = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for key, default in whole.items():
        monkeypatch.setenv(key, value if key == name else default)
    with pytest.raises(UserError, match=f"{name} is '{value}'; expected"), distributed.process_group():
        pass
