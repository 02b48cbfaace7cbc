"""The description of the machine and of versions."""

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
    assert list(environment.versions()) == ["mdistiller", "python", "torch", "torchvision"]
