"""Steps on a real CUDA device: every method, against the CPU, and without waiting for the device."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.meter import EpochMeter
from mdistiller.engine.solver.optim import build_optimizer
from tests.distillers.one_step import batch, build

WAITS = ("KDSVD",)  # PyTorch's SVD reads on the CPU whether it converged


def make(method):
    distiller = build(method, "CRD.NCE.K", "8")
    distiller.attach_data(SimpleNamespace(targets=torch.arange(60) % 7))
    return distiller


def images(device, dtype=torch.float32):
    image, target = batch()
    return {"image": image.to(device, dtype), "target": target.to(device), "index": torch.arange(4, device=device)}


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype
@pytest.mark.parametrize("precision", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", distiller_dict)
def test_two_steps(method, precision):
    distiller = make(method).cuda().to(memory_format=torch.channels_last)
    given, meter = images("cuda"), EpochMeter(1)
    cfg = load_cfg(None, ["SOLVER.LR", "0.001"])
    optimizer = build_optimizer(cfg, distiller.get_learnable_parameters())

    def step(number):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", precision, enabled=precision is not None):
            logits, losses = distiller(**given, epoch=1)
        sum(losses.values()).backward()
        optimizer.step()
        meter.add(number, losses, logits, given)

    step(1)
    try:
        torch.cuda.set_sync_debug_mode("default" if method in WAITS else "error")
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(meter.sync()) == 2  # raises if a loss is not finite
    assert set(distiller.eval().forward_eval(given["image"])) >= {"deployed"}


@pytest.mark.parametrize("method", [method for method in distiller_dict if method not in ("CRD", "KDSVD")])
def test_cuda_equals_cpu_in_float64(method, monkeypatch):
    """CRD draws other contrast images on each kind of device, and KDSVD's loss depends on the signs of the SVD."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # a loss asks for float32, which has fewer digits
    on_cpu = make(method).double()
    on_cuda = copy.deepcopy(on_cpu).cuda()
    results = []
    for distiller, device in ((on_cpu, "cpu"), (on_cuda, "cuda")):
        logits, losses = distiller(**images(device, torch.float64), epoch=1)
        sum(losses.values()).backward()
        gradients = {name: p.grad.cpu() for name, p in distiller.named_parameters() if p.grad is not None}
        results.append({"logits": logits.detach().cpu(), **{k: v.detach().cpu() for k, v in losses.items()}})
        results[-1].update(gradients)
    # float32 matrices and buffers, such as SFAKD's, round differently
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
