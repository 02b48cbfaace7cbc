import pytest
import torch
from torch import nn

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.optim import build_optimizer, learning_rate
from mdistiller.engine.validate import check_settings
from mdistiller.errors import UserError


def rates(steps_per_epoch=3, epochs=240, **solver):
    cfg = load_cfg(None, [part for key, value in solver.items() for part in (f"SOLVER.{key}", str(value))])
    return [learning_rate(cfg, step, steps_per_epoch) for step in range(epochs * steps_per_epoch)]


def test_step_decay_is_upstreams():
    by_step = rates()
    for epoch in range(1, 241):  # upstream: decays where epoch > stage, epochs counted from 1
        expected = 0.05 * 0.1 ** sum(epoch > stage for stage in (150, 180, 210))
        assert by_step[3 * (epoch - 1) : 3 * epoch] == pytest.approx([expected] * 3)


def test_step_decay_is_torchs():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 180, 210], gamma=0.1)
    for ours in rates(steps_per_epoch=1):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_warmup_rises_linearly_then_follows_the_schedule():
    by_step = rates(steps_per_epoch=4, epochs=10, WARMUP_EPOCHS=2.0, EPOCHS=10)
    assert by_step[:8] == pytest.approx([0.05 * n / 8 for n in range(1, 9)])
    assert by_step[8:] == pytest.approx([0.05] * 32)


def test_cosine_and_linear_reach_nearly_zero():
    cosine = rates(SCHEDULE="cosine", EPOCHS=10, epochs=10)
    linear = rates(SCHEDULE="linear", EPOCHS=10, epochs=10)
    assert cosine[0] == linear[0] == 0.05
    assert cosine[15] == pytest.approx(0.025)
    assert linear == pytest.approx([0.05 * (1 - n / 30) for n in range(30)])
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.001


def test_optimizer_settings():
    cfg = load_cfg(None, ["SOLVER.LR", "0.3", "SOLVER.NESTEROV", "True", "SOLVER.WEIGHT_DECAY", "0.002"])
    (group,) = build_optimizer(cfg, [nn.Parameter(torch.zeros(2))]).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.9, True, 0.002)


def test_one_group_without_exempt_parameters():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    (group,) = build_optimizer(load_cfg(None), parameters, []).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in parameters]


def test_exempt_parameters_take_no_weight_decay():
    kept, exempt, last, other = (nn.Parameter(torch.full((2,), 4.0)) for _ in range(4))
    settings = ["SOLVER.LR", "0.5", "SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.MOMENTUM", "0.5"]
    optimizer = build_optimizer(load_cfg(None, settings), [kept, exempt, last], [exempt, other])
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [[id(kept), id(last)], [id(exempt)]]
    for parameter in (kept, exempt, last):
        parameter.grad = torch.full((2,), 2.0)
    optimizer.step()
    assert kept.tolist() == last.tolist() == [4 - 0.5 * (2 + 0.25 * 4)] * 2
    assert exempt.tolist() == [4 - 0.5 * 2] * 2
    optimizer.step()  # momentum and learning rate are those of the others
    assert exempt.tolist() == [3 - 0.5 * (0.5 * 2 + 2)] * 2


def test_all_parameters_may_be_exempt():
    weight = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(load_cfg(None, ["SOLVER.LR", "0.5"]), [weight], [weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [0.5, 0.5]


def test_unknown_optimizer():
    with pytest.raises(UserError, match="SOLVER.TYPE is 'Adam'; expected SGD"):
        check_settings(load_cfg(None, ["SOLVER.TYPE", "Adam"]))


def test_a_parameter_whose_first_gradient_comes_late():
    early, late = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = build_optimizer(load_cfg(None, ["SOLVER.MOMENTUM", "0.9"]), [early, late])
    for number in range(3):
        optimizer.zero_grad()
        (early.sum() + (late.sum() if number else 0)).backward()
        optimizer.step()
    assert (late < 1).all()
    assert (early < late).all()
