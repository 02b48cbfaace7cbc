"""BatchNorm over the images of all processes, here a group of one; of two, tests/engine/test_distributed.py has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdistiller import distributed
from mdistiller.engine.solver.data_parallel import convert_sync_bn, own_statistics, unsynchronized
from tests.processes import run_python


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(distributed, "_initialized", True)
    yield
    distributed.destroy_process_group()


def passes(norm: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, gradients and statistics after a step."""
    x = x.clone().requires_grad_()
    output = norm(x)
    output.backward(grad)
    gradients = [x.grad, *(parameter.grad for parameter in norm.parameters())]
    return [output.detach(), *(gradient for gradient in gradients if gradient is not None), *norm.buffers()]


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_is_batch_norm(shape: tuple[int, ...], options: dict[str, object], channels_last: bool) -> None:
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    own = kind(5, **options).double()  # type: ignore[arg-type]
    for parameter in own.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    plain = copy.deepcopy(own)
    convert_sync_bn(own, "cpu")
    assert type(own) is not kind
    assert isinstance(own, kind)
    x, grad = 3 + torch.randn(2, *shape, dtype=torch.float64)
    if channels_last and len(shape) == 4:
        x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    for _ in range(2):
        for ours, theirs in zip(passes(own, x, grad), passes(plain, x, grad)):
            torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(own.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_low_precision_keeps_a_gradient_along_the_input(mean: float) -> None:
    own = nn.BatchNorm2d(8)
    exact = copy.deepcopy(own).double()
    convert_sync_bn(own, "cpu")
    x = (mean + torch.randn(16, 8, 4, 4)).bfloat16()
    grad = (x.float() - mean + 0.1 * torch.randn_like(x.float())).bfloat16()  # nearly all of it cancels out
    ours = passes(own, x, grad)[1].double()
    theirs = passes(exact, x.double(), grad.double())[1]
    assert (ours - theirs).norm() < 0.005 * theirs.norm()


def test_statistics_of_ones_own_are_those_of_what_is_not_synchronized(monkeypatch: pytest.MonkeyPatch) -> None:
    class Norm(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(2), Norm(2), nn.BatchNorm2d(2).eval(), nn.Linear(2, 2))
    assert own_statistics(model) == {}
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    convert_sync_bn(model, "cpu")
    assert sorted(own_statistics(model)) == ["1.running_mean", "1.running_var"]
    assert unsynchronized(model) == ["Norm"]


# With PyTorch 2.4, `destroy_process_group` alone hangs in one of some hundred groups.
GROUPS = """
import sys, torch, torch.distributed as dist
from mdistiller import distributed

for number in range(300):
    store = dist.FileStore(f"{sys.argv[1]}/{number}", 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    for _ in range(4):
        dist.all_gather([torch.empty(3)], torch.ones(3))
    distributed.destroy_process_group()
print("left")
"""


def test_a_group_is_left_without_waiting_for_ones_own_lock(tmp_path: Path) -> None:
    assert run_python("-c", GROUPS, tmp_path)[:2] == (0, "left\n")
