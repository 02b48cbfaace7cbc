"""Weights & Biases never asks, never waits, never costs the run; the other sinks keep what they are given."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.log.logger import RunLogger
from mdistiller.engine.run.folder import RunFolder
from tests.conftest import REPO


class FakeRun:
    id = "abc123"
    dir = "output/run/wandb/offline-run/files"

    def __init__(self):
        self.rows, self.summary, self.finished = [], {}, False

    def log(self, row, step):
        assert step == row["epoch"]
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that records how it was started; `credentials` is what its look-up without a prompt answers."""
    fake = SimpleNamespace(run=FakeRun(), started=[], Settings=dict, credentials=False)
    fake.settings = SimpleNamespace(mode="online", base_url="https://api.wandb.ai")
    fake.setup = lambda settings: fake

    def login(prompt=True):
        assert not prompt
        if isinstance(fake.credentials, Exception):
            raise fake.credentials
        return fake.credentials

    def init(**settings):
        assert not sys.stdin.isatty()
        fake.started.append(settings)
        if settings["mode"] is None and fake.credentials == "refused":
            raise ConnectionError("refused by the server")
        return fake.run

    fake.init, fake.login = init, login
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def logger(*overrides):
    cfg = load_cfg(None, ["EXPERIMENT.NAME", "run", "EXPERIMENT.TAG", "a, b", *overrides])
    folder = RunFolder(cfg.LOG.PREFIX, "run")
    folder.create(resume=True)
    return RunLogger(folder, cfg)


def test_without_credentials_it_logs_offline_and_says_so(wandb, capsys):
    log = logger()
    log.epoch({"epoch": 1, "loss": 2.0})
    log.finish({"best": 1})
    assert [start["mode"] for start in wandb.started] == ["offline"]
    assert wandb.started[0]["tags"] == ["a", "b"]
    assert wandb.run.rows == [{"epoch": 1, "loss": 2.0}]
    assert wandb.run.finished
    assert capsys.readouterr().out.count("no credentials, logging offline") == 1


def test_tags_that_wandb_refuses_are_left_out_or_cut(wandb):
    logger("EXPERIMENT.TAG", f"kd,, {'x' * 70},")
    assert wandb.started[0]["tags"] == ["kd", "x" * 64]


def test_with_credentials_it_logs_online(wandb, capsys):
    wandb.credentials = True
    logger()
    assert [start["mode"] for start in wandb.started] == [None]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_what_the_user_chose_stands(wandb, capsys, mode):
    wandb.settings.mode = mode  # by WANDB_MODE or `wandb offline`
    logger()
    assert [start["mode"] for start in wandb.started] == [None]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("credentials", "modes", "reason"),
    [
        (ValueError("the key has 3 characters"), ["offline"], "the key has 3 characters"),
        ("refused", [None, "offline"], "refused by the server"),
    ],
)
def test_what_cannot_be_online_is_kept_offline(wandb, capsys, credentials, modes, reason):
    wandb.credentials = credentials
    log = logger()
    log.epoch({"epoch": 1})
    assert [start["mode"] for start in wandb.started] == modes
    assert wandb.run.rows == [{"epoch": 1}]
    sync = f"wandb sync {Path.cwd() / 'output/run/wandb/offline-run'}"
    assert capsys.readouterr().out == f"wandb: logging offline ({reason}); send the run later with: {sync}\n"


@pytest.mark.parametrize("key", [None, "k" * 40])
def test_an_earlier_wandb_is_asked_for_its_key(wandb, monkeypatch, capsys, key):
    """Before 0.31 wandb.login had no `prompt`, and the first contact with the server was tried for minutes."""
    wandb.login = lambda key=None: pytest.fail("it would ask")
    wandb.api = SimpleNamespace(api_key=key)
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("localhost", 0))
        wandb.settings.base_url = f"http://localhost:{closed.getsockname()[1]}"
        logger()
    assert [start["mode"] for start in wandb.started] == ["offline"]
    expected = rf"logging offline \({wandb.settings.base_url} cannot be reached: .+\)" if key else "no credentials"
    assert re.search(expected, capsys.readouterr().out)


RUN = """
import sys
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.log.logger import RunLogger
from mdistiller.engine.run.folder import RunFolder
cfg = load_cfg(None, ["EXPERIMENT.NAME", "run"])
folder = RunFolder(cfg.LOG.PREFIX, "run")
folder.create(resume=True)
log = RunLogger(folder, cfg, wandb_id=sys.argv[1])
log.epoch({"epoch": 1, "loss": 2.0})
log.finish({"best": 1})
print("id", log.wandb_id)
"""


def at_a_terminal(*arguments):
    """Run Python where wandb would prompt: standard input and error are a terminal. Return its standard output."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments], stdin=end, stderr=end, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    os.close(end)
    errors = []

    def drain():
        with suppress(OSError):  # at the end
            while True:
                errors.append(os.read(terminal, 4096))

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        out, _ = process.communicate(timeout=280)
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(terminal)
    assert process.returncode == 0, (out, b"".join(errors))
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_login_of_the_installed_wandb_is_found_and_its_rows_kept(monkeypatch, tmp_path):
    """The real package, without a network: `wandb login` to a server that does not answer."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = at_a_terminal(RUN, "first1")
    assert "wandb: no credentials, logging offline" in out and out.endswith("id first1\n")
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("localhost", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://localhost:{closed.getsockname()[1]}")
        at_a_terminal(f"import wandb; wandb.login(key={'k' * 40!r}, verify=False)")
        assert (tmp_path / ".netrc").is_file()
        out = at_a_terminal(RUN, "second2")
    place = re.search(r"^wandb: logging offline \(.+\); send the run later with: wandb sync (.+)$", out, flags=re.M)[1]
    assert out.endswith("id second2\n")
    [rows] = Path(place).glob("run-second2.wandb")
    assert rows.stat().st_size > 0


def test_a_failing_service_costs_one_line(wandb, capsys):
    wandb.init = lambda **settings: 1 / 0
    log = logger()
    log.epoch({"epoch": 1})
    log.finish({})
    assert log.wandb is None
    assert "wandb: off for this run (division by zero)" in capsys.readouterr().out


def test_a_service_that_breaks_down_costs_one_line(wandb, capsys):
    log = logger()
    wandb.run.log = lambda row, step: 1 / 0
    for epoch in (1, 2):
        log.epoch({"epoch": epoch})
    log.finish({})
    assert len(log.folder.metrics.read_text().splitlines()) == 2
    assert capsys.readouterr().out.count("wandb: off from now on (division by zero)") == 1


def test_a_run_is_continued_under_its_id(wandb):
    assert logger().wandb_id == "abc123"
    assert (wandb.started[0]["id"], wandb.started[0]["resume"]) == (None, "allow")
    cfg = load_cfg(None, ["EXPERIMENT.NAME", "run"])
    again = RunLogger(RunFolder(cfg.LOG.PREFIX, "run"), cfg, 1, 10, "abc123")
    assert tuple(wandb.started[1][key] for key in ("id", "resume", "mode")) == ("abc123", "allow", "offline")
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
    assert wandb.started == []


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
