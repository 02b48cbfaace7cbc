"""Re-estimated BatchNorm statistics: their values, and what they leave alone."""

from __future__ import annotations

import copy
import random
from typing import Any, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mdistiller import distributed
from mdistiller.distillers import Distiller
from mdistiller.engine.evaluation.precise_bn import estimate_statistics, eval_with
from mdistiller.engine.run.signals import RunStopped
from mdistiller.engine.speed.precision import Precision
from mdistiller.models import build_model

FLOAT32 = Precision("cpu", None)


class Plain(Distiller):
    """Any module as the student; its output, averaged over the positions, is the logits."""

    needs_teacher = False

    def __init__(self, module: nn.Module) -> None:
        student = nn.Sequential(module)
        student.forward = lambda image: (module(image).mean((2, 3)), {})  # type: ignore[method-assign, assignment]
        super().__init__(student)
        self.unused = nn.Parameter(torch.zeros(()))


def images(*channels: list[float]) -> dict[str, Tensor]:
    """Return a batch of 1×1 images: one list per channel, with one value per image."""
    return {"image": torch.tensor(channels).float().t()[:, :, None, None]}


BATCHES = [images([1, 3], [0, 0], [-2, 2]), images([5, 9], [4, 4], [0, 0]), images([0, 0], [2, 8], [1, 3])]


def test_the_average_by_hand() -> None:
    norm = nn.BatchNorm2d(3)
    statistics = estimate_statistics(Plain(norm), BATCHES, FLOAT32)
    # the batches' means are 2 7 0, 0 4 5 and 0 0 2; their unbiased variances 2 8 0, 0 0 18 and 8 0 2
    torch.testing.assert_close(statistics["student.0.running_mean"], torch.tensor([3, 3, 2 / 3]))
    torch.testing.assert_close(statistics["student.0.running_var"], torch.tensor([10 / 3, 6, 10 / 3]))
    assert len(statistics) == 2
    assert (norm.running_mean.tolist(), norm.running_var.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert (norm.num_batches_tracked, norm.momentum, norm.training) == (0, 0.1, True)


def test_what_is_evaluated_by_hand() -> None:
    distiller = Plain(nn.BatchNorm2d(3, eps=1e-12))
    statistics = estimate_statistics(distiller, BATCHES[:2], FLOAT32)  # mean 4.5 2 0, variance 5 0 4
    statistics["student.0.running_var"][1] = 4
    image = images([7], [5], [8])["image"]
    found = eval_with(distiller.eval(), statistics, True, image)
    torch.testing.assert_close(found["deployed"], torch.tensor([[2.5 / 5**0.5, 1.5, 4]]))
    torch.testing.assert_close(found["running"], torch.tensor([[7.0, 5.0, 8.0]]))
    assert torch.equal(eval_with(distiller, statistics, False, image).pop("deployed"), found["deployed"])
    assert eval_with(distiller, statistics, False, image).keys() == {"deployed"}
    without = eval_with(distiller, {}, True, image)
    assert without.keys() == {"deployed"}
    assert torch.equal(without["deployed"], found["running"])


@pytest.mark.parametrize("arch", ["resnet8", "vgg8", "wrn_16_1", "MobileNetV2"])
def test_a_network_gets_what_update_bn_computes(arch: str) -> None:
    torch.manual_seed(0)
    student = build_model(arch, 5)
    batches = [{"image": 2 + torch.randn(6, 3, 32, 32)} for _ in range(3)]
    reference = copy.deepcopy(student)
    update_bn([batch["image"] for batch in batches], reference)
    distiller = Distiller(student)
    before = copy.deepcopy(distiller.state_dict())
    statistics = estimate_statistics(distiller, batches, FLOAT32)
    for name, buffer in reference.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(statistics.pop(f"student.{name}"), buffer), name
    assert statistics == {}
    for name, value in distiller.state_dict().items():
        assert torch.equal(value, before[name]), name


class Odd(nn.Module):
    """Keeps numbers of its own, draws from each generator, and has BatchNorms that must stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.3)
        self.frozen = nn.BatchNorm2d(3)
        self.unreached = nn.BatchNorm2d(3)
        self.without = nn.BatchNorm2d(3, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        self.calls += self.training
        noise = random.random() + np.random.rand()
        mixed = self.instance(self.without(self.frozen(self.norm(image.expand(-1, -1, 2, 2)))))
        return nn.functional.dropout(mixed, 0.5, self.training) * noise


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_nothing_else_changes() -> None:
    module = Odd()
    distiller = Plain(module)
    distiller.train()
    module.frozen.eval()
    before = {name: (buffer, buffer.clone()) for name, buffer in distiller.named_buffers()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    statistics = estimate_statistics(distiller, BATCHES, FLOAT32)
    after = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    assert after == draws()
    assert statistics.keys() == {"student.0.norm.running_mean", "student.0.norm.running_var"}
    for name, buffer in distiller.named_buffers():
        assert buffer is before[name][0], name
        assert torch.equal(buffer, before[name][1]), name
    assert module.norm.momentum == 0.3
    assert (module.norm.training, module.frozen.training) == (True, False)
    assert all(parameter.grad is None for parameter in distiller.parameters())


def test_an_exception_leaves_all_as_it_was() -> None:
    module = Odd()
    distiller = Plain(module)
    before = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RunStopped("SIGTERM")

    with pytest.raises(RunStopped):
        estimate_statistics(distiller, BATCHES, FLOAT32, check)
    assert module.norm.momentum == 0.3
    for name, buffer in distiller.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_batch_norms_of_each_process_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `SOLVER.SYNC_BN False`; the other process here finds twice the values of this one."""
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor + 2 * tensor)
    distiller = Plain(nn.BatchNorm2d(3))
    statistics = estimate_statistics(distiller, BATCHES, FLOAT32)
    torch.testing.assert_close(statistics["student.0.running_mean"], torch.tensor([4.5, 4.5, 1]))
    torch.testing.assert_close(statistics["student.0.running_var"], torch.tensor([5.0, 9, 5]))
    assert distiller.student[0].running_var.tolist() == [1, 1, 1]


def test_without_batch_norm_nothing_is_read() -> None:
    def unread() -> Iterator[Any]:
        raise AssertionError("read")
        yield

    assert estimate_statistics(Plain(nn.Conv2d(3, 3, 1)), unread(), FLOAT32) == {}
    assert estimate_statistics(Plain(nn.BatchNorm2d(3, track_running_stats=False)), unread(), FLOAT32) == {}


def test_the_precision_is_that_of_training() -> None:
    distiller = Plain(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)))
    batch = {"image": 1 + torch.randn(8, 3, 4, 4)}
    with torch.no_grad():
        low = nn.functional.conv2d(batch["image"].bfloat16(), distiller.student[0][0].weight.bfloat16()).float()
    mean = estimate_statistics(distiller, [batch], Precision("cpu", torch.bfloat16))["student.0.1.running_mean"]
    torch.testing.assert_close(mean, low.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    exact = estimate_statistics(distiller, [batch], FLOAT32)["student.0.1.running_mean"]
    assert not torch.allclose(mean, exact, rtol=1e-5, atol=1e-6)


class OwnTest(Distiller):
    """Tests by a BatchNorm of its own, which is in no head; as a fork's SimKD does."""

    needs_teacher = False

    def __init__(self, student: nn.Module) -> None:
        super().__init__(student)
        self.norm = nn.BatchNorm1d(3)
        self.spare = nn.BatchNorm1d(3)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.norm(self.student(image)[0])
        return logits, {"loss_ce": nn.functional.cross_entropy(logits, target)}

    def forward_test(self, image: Tensor) -> Tensor:
        return self.norm(self.student(image)[0])


class OwnEval(OwnTest):
    """Runs more than student and head in an evaluation, without a `forward_test` of its own."""

    forward_test = Distiller.forward_test

    def forward_eval(self, image: Tensor) -> dict[str, Tensor]:
        logits = self.student(image)[0]
        return {"deployed": logits, "other": self.norm(logits)}


def test_a_forward_eval_of_its_own_leaves_all_modules_as_they_were() -> None:
    distiller = OwnEval(Plain(nn.BatchNorm2d(3)).student)
    before = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    assert "norm.running_mean" in estimate_statistics(distiller, BATCHES, FLOAT32)
    assert all(torch.equal(buffer, before[name]) for name, buffer in distiller.named_buffers())
