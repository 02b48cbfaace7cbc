"""The fake device finds what it is for, and leaves everything as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from mdistiller.distillers import Distiller
from mdistiller.models import build_model
from tests.distillers.one_step import batch
from tests.fake_cuda import FaultyStep, check_distiller, check_model, fake_cuda


class Faulty(Distiller):
    """A distiller with one of `FAULTS` in its step."""

    def __init__(self, fault):
        super().__init__(build_model("resnet8", 7))
        self.fault = fault
        self.left = torch.ones(7)
        self.in_list = [torch.ones(7)]
        self.register_buffer("moves", torch.ones(7))

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        return logits, {"loss_ce": FAULTS[self.fault](self, logits.float(), target).mean()}


FAULTS = {
    "made in forward": lambda self, logits, target: logits + torch.ones(7),
    "plain attribute": lambda self, logits, target: logits * self.left,
    "in a list": lambda self, logits, target: logits * self.in_list[0],
    "looks up": lambda self, logits, target: logits[torch.tensor([0, 2])],
    "look-up table": lambda self, logits, target: logits * self.left[target.cpu()].sum(),
    "copies each step": lambda self, logits, target: logits * self.left.to(logits.device),
    "waits for a number": lambda self, logits, target: logits / logits.max().item(),
    "waits for a decision": lambda self, logits, target: logits if (logits > 0).any() else -logits,
    "waits for a size": lambda self, logits, target: logits[target > 2],
    "generator": lambda self, logits, target: logits + torch.rand(7, generator=torch.Generator(), device=logits.device),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_step_is_reported_by_name(fault, gradients):
    image, target = batch()
    with pytest.raises(FaultyStep, match=r"^MINE, tests/test_fake_cuda\.py line \d+: "):
        check_distiller("MINE", Faulty(fault), {"image": image, "target": target}, gradients)


ALLOWED = {
    "buffer": lambda self, logits, target: logits * self.moves,
    "made on the device": lambda self, logits, target: logits + torch.ones(7, device=logits.device),
    "scalar of the CPU": lambda self, logits, target: logits * torch.tensor(2.0),
    "does not wait": lambda self, logits, target: logits * self.left.to(logits.device, non_blocking=True),
    "generator of the device": lambda self, logits, target: (
        logits + torch.rand(7, generator=torch.Generator(logits.device), device=logits.device)
    ),
    "work of the CPU": lambda self, logits, target: logits * float(self.left[self.left > 0].sum()),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("step", ALLOWED)
def test_a_step_without_a_fault_passes(monkeypatch, step, gradients):
    monkeypatch.setitem(FAULTS, step, ALLOWED[step])
    image, target = batch()
    check_distiller("MINE", Faulty(step), {"image": image, "target": target}, gradients)


def test_a_faulty_test_step_is_reported(monkeypatch):
    monkeypatch.setitem(FAULTS, "none", ALLOWED["buffer"])
    distiller, (image, target) = Faulty("none"), batch()
    monkeypatch.setattr(distiller, "forward_test", lambda image: distiller.student(image)[0] + distiller.left)
    monkeypatch.setattr(distiller, "forward_eval", lambda image: {"deployed": distiller.forward_test(image)})
    with pytest.raises(FaultyStep, match="^MINE, "):
        check_distiller("MINE", distiller, {"image": image, "target": target})


def test_a_faulty_model_is_reported():
    class Model(nn.Linear):
        def forward(self, image):
            return super().forward(image) + torch.ones(5)

    with pytest.raises(FaultyStep, match="^Mine, "):
        check_model("Mine", Model(4, 5), torch.ones(2, 4))
    check_model("Linear", nn.Linear(4, 5), torch.ones(2, 4))


def test_everything_is_as_before_at_the_end():
    shared = nn.Linear(3, 3)
    model = nn.ModuleList([shared, nn.BatchNorm1d(3), shared])
    model[1].weight = shared.bias
    before, generator, autocast = dict(model.state_dict(keep_vars=True)), torch.Generator, torch.autocast
    with fake_cuda() as gpu:
        gpu.move(model)
        assert all(isinstance(tensor, FakeTensor) for tensor in model.state_dict().values())
        assert model[1].weight is model[0].bias
        assert not isinstance(torch.ones(2).sum(), FakeTensor)
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert (torch.Generator, torch.autocast) == (generator, autocast)
    model[0](torch.ones(2, 3)).sum().backward()
    assert shared.weight.grad.any()
