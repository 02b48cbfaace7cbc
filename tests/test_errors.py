"""Helpers for messages."""

import errno
import importlib.util
import os
import pickle
import subprocess
import sys

import pytest

from mdistiller import cli
from mdistiller.dataset.loading.encoded import UnusableImage
from mdistiller.distributed_errors import to_sendable
from mdistiller.errors import UserError, check_libraries, memory_shortage
from tests.conftest import REPO


def test_a_file_without_permission_is_one_line(capsys):
    def main():
        raise PermissionError(errno.EACCES, "Permission denied", "closed/x.pth")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert (
        capsys.readouterr().err == "error: closed/x.pth cannot be accessed (Permission denied); fix its permissions\n"
    )


def test_errors_pass_to_another_process_whole():
    error = pickle.loads(pickle.dumps(UnusableImage("a.png (cut)")))
    assert (type(error), error.faults) == (UserError, UnusableImage("a.png (cut)").faults)
    assert pickle.loads(pickle.dumps(UserError("one", "two"))).faults == ["one", "two"]
    sent = to_sendable(PermissionError(errno.EACCES, "Permission denied", "a/b"))
    assert (type(sent), sent.filename, sent.strerror) == (PermissionError, "a/b", "Permission denied")


@pytest.mark.parametrize("line", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_a_gpu_without_memory(line):
    assert memory_shortage(RuntimeError(line)).startswith("out of memory (CUDA error")


def test_missing_libraries_are_named_with_the_command_that_installs_them(monkeypatch):
    libraries = {"json": "json", "jinja2": "Jinja2", "scipy": "scipy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name != "json" else object())
    with pytest.raises(UserError) as caught:
        check_libraries("a page", libraries)
    assert str(caught.value) == "a page needs Jinja2, scipy; run: pip install Jinja2 scipy"
    monkeypatch.undo()
    check_libraries("a page", {"json": "json"})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_one_line_and_status_2():
    code = "from mdistiller.cli import run; run(lambda: print('result'))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=REPO
        )
    assert (found.returncode, len(found.stderr.splitlines())) == (2, 1)
    assert "the output or a file cannot be written (No space left on device)" in found.stderr
