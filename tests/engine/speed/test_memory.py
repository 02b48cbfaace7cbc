"""Memory figures are those of the process, and available memory is within the limit of the container."""

import psutil
import pytest
import torch

from mdistiller.engine.speed import memory
from tests.processes import run_python

MEMORY = """
import torch
from mdistiller.engine.speed.memory import available_memory, memory_figures

cpu = torch.device("cpu")
before = memory_figures(cpu)
block = torch.ones(64, 2**20)  # 256 MiB
after = memory_figures(cpu)
assert 200 < after["memory_mib"] - before["memory_mib"] < 320, (before, after)
assert after["peak_memory_mib"] >= after["memory_mib"], after
assert 2**20 < available_memory(cpu) < 2**50
"""


def test_memory_figures_are_of_the_process():
    # in a new process, because in this one the block may reuse memory that earlier tests freed
    status, _, err = run_python("-c", MEMORY)
    assert status == 0, err


def test_memory_of_a_gpu_without_an_index(monkeypatch):
    """PyTorch 2.4 takes the index of a device, or none, but no device without an index."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {None: (7, 9), 1: (8, 9)}[device])
    assert memory.available_memory(torch.device("cuda")) == 7
    assert memory.available_memory(torch.device("cuda:1")) == 8


V1 = {"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "3000"}
V1["memory/memory.stat"] = "cache 9\ntotal_inactive_file 700\n"
V2 = {"memory.max": "5000\n", "memory.current": "3000\n", "memory.stat": "anon 9\ninactive_file 700\n"}


@pytest.mark.parametrize(
    ("files", "expected"), [(V1, 2700), (V2, 2700), ({**V2, "memory.max": "max\n"}, None), ({}, None)]
)
def test_available_memory_is_within_the_limit_of_a_container(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000}))
    assert memory.available_memory(torch.device("cpu")) == (expected or 10_000)
