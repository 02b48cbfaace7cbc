"""Weights & Biases never asks, never waits, never costs the run; the other sinks keep what they are given."""

import json
import sys
from types import SimpleNamespace

import pytest

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.logger import RunLogger
from mdistiller.engine.run_folder import RunFolder


class FakeRun:
    id = "abc123"

    def __init__(self):
        self.rows, self.summary, self.finished = [], {}, False

    def log(self, row, step):
        assert step == row["epoch"]
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A stand-in that records how it was started; no credentials anywhere."""
    fake = SimpleNamespace(run=FakeRun(), started=None, Settings=dict)

    def init(**settings):
        fake.started = settings
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return fake


def logger(*overrides):
    cfg = load_cfg(None, ["EXPERIMENT.NAME", "run", "EXPERIMENT.TAG", "a, b", *overrides])
    folder = RunFolder(cfg.LOG.PREFIX, "run")
    folder.create(resume=True)
    return RunLogger(folder, cfg)


def test_without_credentials_it_logs_offline_and_says_so(wandb, capsys):
    log = logger()
    log.epoch({"epoch": 1, "loss": 2.0})
    log.close({"best": 1})
    assert wandb.started["mode"] == "offline"
    assert wandb.started["tags"] == ["a", "b"]
    assert wandb.run.rows == [{"epoch": 1, "loss": 2.0}]
    assert wandb.run.finished
    assert capsys.readouterr().out.count("no credentials, logging offline") == 1


@pytest.mark.parametrize("where", ["environment", "netrc", "own server"])
def test_with_credentials_it_logs_online(wandb, monkeypatch, tmp_path, where):
    host = "wandb.example.org" if where == "own server" else "api.wandb.ai"
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        (tmp_path / ".netrc").write_text(f"machine {host} login user password {'k' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}")
    logger()
    assert wandb.started["mode"] is None


def test_a_failing_service_costs_one_line(wandb, capsys):
    wandb.init = lambda **settings: 1 / 0
    log = logger()
    log.epoch({"epoch": 1})
    log.close({})
    assert log.wandb is None
    assert "wandb: off for this run (division by zero)" in capsys.readouterr().out


def test_a_service_that_breaks_down_costs_one_line(wandb, capsys):
    log = logger()
    wandb.run.log = lambda row, step: 1 / 0
    for epoch in (1, 2):
        log.epoch({"epoch": epoch})
    log.close({})
    assert len(log.folder.metrics.read_text().splitlines()) == 2
    assert capsys.readouterr().out.count("wandb: off from now on (division by zero)") == 1


def test_a_run_is_continued_under_its_id(wandb):
    assert logger().wandb_id == "abc123"
    assert (wandb.started["id"], wandb.started["resume"]) == (None, "allow")
    cfg = load_cfg(None, ["EXPERIMENT.NAME", "run"])
    again = RunLogger(RunFolder(cfg.LOG.PREFIX, "run"), cfg, 1, 10, "abc123")
    assert (wandb.started["id"], wandb.started["resume"], wandb.started["mode"]) == ("abc123", "allow", "offline")
    again.epoch({"epoch": 2})  # with its epoch as wandb's step, see FakeRun


def test_the_id_outlives_a_run_without_wandb(wandb):
    cfg = load_cfg(None, ["EXPERIMENT.NAME", "run", "LOG.WANDB", "False"])
    logger()
    assert RunLogger(RunFolder(cfg.LOG.PREFIX, "run"), cfg, 1, 10, "abc123").wandb_id == "abc123"
    wandb.init = lambda **settings: 1 / 0
    cfg.merge_from_list(["LOG.WANDB", "True"])
    assert RunLogger(RunFolder(cfg.LOG.PREFIX, "run"), cfg, 1, 10, "abc123").wandb_id == "abc123"


def test_off_means_not_imported(wandb):
    logger("LOG.WANDB", "False")
    assert wandb.started is None


def test_a_resume_drops_rows_that_will_be_written_again(wandb):
    log = logger("LOG.WANDB", "False")
    for epoch in (1, 2, 3):
        log.epoch({"epoch": epoch})
    again = RunLogger(log.folder, load_cfg(None, ["LOG.WANDB", "False"]), start_epoch=2)
    again.epoch({"epoch": 3, "loss": 1.0})
    rows = [json.loads(row) for row in log.folder.metrics.read_text().splitlines()]
    assert rows == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "loss": 1.0}]


def test_the_worklog_keeps_what_was_said(wandb, capsys):
    log = logger("LOG.WANDB", "False")
    log.say("one\ntwo")
    lines = log.folder.worklog.read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["one", "two"]
    assert capsys.readouterr().out == "one\ntwo\n"
