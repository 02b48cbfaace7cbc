"""The description of the machine and of versions."""

import shutil
import subprocess

import pytest
import torch

from mdistiller.engine.run import environment


def test_the_machine_has_a_name(monkeypatch):
    text = "processor: 0\nmodel name\t: Some CPU 3000\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16\n"
    monkeypatch.setattr(environment.Path, "read_text", lambda path: text)
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    name = environment.describe_hardware(torch.device("cpu"))
    assert name == "Some CPU 3000, 6 cores, 3 threads, AMX, AVX512-BF16"
    monkeypatch.setattr(environment.Path, "read_text", lambda path: text.partition("flags")[0])
    name = environment.describe_hardware(torch.device("cpu"))
    assert name == "Some CPU 3000, 6 cores, 3 threads, no AMX or AVX512-BF16"


def test_versions():
    assert environment.versions()["torch"] == torch.__version__
    assert sorted(environment.versions().keys() - {"commit"}) == ["mdistiller", "python", "torch", "torchvision"]


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True, check=True
        ).stdout

    monkeypatch.setattr(environment, "SHIPPED", tmp_path)
    assert "commit" not in environment.versions()
    git("init")
    assert "commit" not in environment.versions()  # there is no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")[:12]
    assert environment.versions()["commit"] == commit
    (tmp_path / "a").write_text("2")
    assert environment.versions()["commit"] == f"{commit}-dirty"
