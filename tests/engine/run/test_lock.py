"""One run in a folder at a time."""

import errno
import logging
import signal
import sys

import pytest

from mdistiller import torchrun
from mdistiller.engine.run import lock
from mdistiller.engine.run.folder import RunFolder
from mdistiller.engine.run.lock import check_free, locked
from mdistiller.errors import UserError
from tests.processes import run_python

# plain system calls, not the package's own code; a status of 1 is an exception: somebody else holds the lock
LOCK = """
import fcntl, os, sys
os.makedirs(sys.argv[1], exist_ok=True)
file = open(sys.argv[1] + "/.lock", "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
HOLD = """
file.write(f"process {os.getpid()} on here")
file.flush()
print("held", flush=True)
sys.stdin.read()  # until the test is over
"""


@pytest.fixture
def other_process(tmp_path, started):
    """Another process holds the lock of `tmp_path/run`."""
    process = started(sys.executable, "-c", LOCK + HOLD, tmp_path / "run")
    process.wait_for("held")
    return process


def test_another_process_keeps_runs_out_until_it_is_killed(tmp_path, other_process):
    folder = RunFolder(str(tmp_path), "run")
    expected = rf"a run is writing to .*run \(process {other_process.pid} on here\); wait for it, or name this one"
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(UserError, match=expected):
            folder.check(resume, overwrite)
    with pytest.raises(UserError, match=expected), locked(folder.path):
        pass
    other_process.send_signal(signal.SIGKILL)
    assert other_process.finish()[0] == -signal.SIGKILL
    folder.check(False, False)
    with locked(folder.path):
        pass


def test_a_second_run_of_this_process(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match=r"\(this process\)"), locked(tmp_path):
            pass
        check_free(tmp_path)  # whose own lock it is; and it must still be held afterwards
        assert run_python("-c", LOCK, tmp_path)[0] == 1
    assert run_python("-c", LOCK, tmp_path)[0] == 0
    with locked(tmp_path):
        pass


def test_a_lock_is_given_back_after_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("reason", ["no locks", "no fcntl"])
def test_where_nothing_can_be_locked_a_note_says_so(tmp_path, monkeypatch, caplog, reason):
    if reason == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def lockf(*args):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    caplog.set_level(logging.INFO, "mdistiller")
    with locked(tmp_path):
        check_free(tmp_path)
    shown = {"no fcntl": "this system has no fcntl", "no locks": "No locks available"}[reason]
    notes = [f"note: {tmp_path} cannot be locked ({shown}); do not start a second run in it"]
    assert [record.message for record in caplog.records] == notes


def test_a_lock_alone_is_no_run(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    with folder.claim(False, False):
        pass
    folder.check(False, False)
    assert folder.check(True, False) == (False, True)  # it starts from the beginning
    folder.config.write_text("killed: here")
    folder.check(False, True)


def test_a_name_of_an_earlier_launch_is_no_longer_that_of_its_run(tmp_path, monkeypatch):
    folder = RunFolder(str(tmp_path), "run")
    monkeypatch.setattr(torchrun, "job_name", lambda: "job 17")
    with folder.claim(False, False):
        folder.create(False)
    folder.latest.write_text("of the first launch")
    for _ in range(2):
        with pytest.raises(UserError, match="already holds a run"):
            folder.check(False, False)  # the second launch, which was given the same name, then its restart
        monkeypatch.setattr(torchrun, "is_restart", lambda: True)
    assert folder.check(False, True) == (False, True)


def test_a_restart_tells_its_own_run_from_the_one_that_it_was_to_replace(tmp_path, monkeypatch):
    folder = RunFolder(str(tmp_path), "run")
    folder.path.mkdir()
    folder.latest.write_text("of another run")
    folder.config.write_text("")
    folder.worklog.write_text("")
    monkeypatch.setattr(torchrun, "job_name", lambda: "job 17")
    with folder.claim(False, True):
        pass  # killed before anything was removed
    monkeypatch.setattr(torchrun, "is_restart", lambda: True)
    assert folder.check(False, True) == (False, True)
    with folder.claim(False, True):
        folder.create(False)
    assert not folder.latest.exists()
    assert folder.check(False, True) == (False, True)
    folder.latest.write_text("our own")
    assert folder.check(False, True) == (True, False)
