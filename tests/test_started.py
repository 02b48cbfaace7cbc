"""The processes of tests: lines that are waited for, and an end for all that they started."""

from __future__ import annotations

import signal
import sys

import psutil
import pytest

from tests.processes import Started, run_python

# starts a process in a session of its own, as torchrun does, and waits
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-Sc", "print(1, flush=True); import signal; signal.pause()"],
    start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
child.stdout.readline()
print("child", child.pid, flush=True)
sys.stdin.read()
"""


def ended(process: psutil.Process) -> bool:
    """Whether it ended, though perhaps nobody has asked for its status yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_all_that_it_started_ends_with_it():
    with Started(sys.executable, "-Sc", PARENT) as process:
        child = psutil.Process(int(process.wait_for("child").split()[1]))
        assert not ended(child)
    assert ended(child)
    assert process.process.returncode == -signal.SIGKILL


def test_what_it_left_ends_too():
    script = PARENT.replace("sys.stdin.read()", "")
    with Started(sys.executable, "-Sc", script) as process:
        status, out, _ = process.finish()
        child = psutil.Process(int(out.split()[1]))
        assert status == 0
        assert not ended(child)
    assert ended(child)


def test_a_line_that_does_not_come_is_told_with_all_that_came(started):
    process = started(sys.executable, "-Sc", "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)")
    expected = "no line begins with 'three'\n[\\s\\S]*status 3\n[\\s\\S]*one[\\s\\S]*two"
    with pytest.raises(pytest.fail.Exception, match=expected):
        process.wait_for("three")
    assert process.finish() == (3, "one\n", "two\n")


def test_no_output_is_too_long():
    status, out, err = run_python("-Sc", "import sys; print('a' * 10**6); print('b' * 10**6, file=sys.stderr)")
    assert (status, len(out), len(err)) == (0, 10**6 + 1, 10**6 + 1)
