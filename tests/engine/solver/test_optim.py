import sys

import pytest
import torch
from torch import nn

from mdistiller.distillers import Distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run.folder import RunFolder
from mdistiller.engine.solver.optim import build_optimizer, learning_rate, set_learning_rate
from mdistiller.engine.solver.update_rules import SummedLosses
from mdistiller.engine.step import TrainStep
from mdistiller.engine.training_state import TrainingState
from mdistiller.engine.validate import check_settings
from mdistiller.errors import UserError

TIMM = "the name of an optimizer of timm.optim"


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
    with pytest.raises(UserError, match="SOLVER.TYPE is 'Adamant'; .*expected SGD or AdamW, or"):
        check_settings(load_cfg(None, ["SOLVER.TYPE", "Adamant"]))


def test_a_parameter_whose_first_gradient_comes_late():
    early, late = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = build_optimizer(load_cfg(None, ["SOLVER.MOMENTUM", "0.9"]), [early, late])
    for number in range(3):
        optimizer.zero_grad()
        (early.sum() + (late.sum() if number else 0)).backward()
        optimizer.step()
    assert (late < 1).all()
    assert (early < late).all()


def test_adamw_by_hand():
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    settings = ["SOLVER.TYPE", "AdamW", "SOLVER.LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.BETAS", "[0.5, 0.75]"]
    optimizer = build_optimizer(load_cfg(None, [*settings, "SOLVER.EPS", "1e-12"]), [weight])
    weight.grad = torch.tensor([4.0, -8.0])
    optimizer.step()  # the first step is the sign of the gradient, after the decay
    torch.testing.assert_close(weight.detach(), torch.tensor([2 * 0.95 - 0.1, -1 * 0.95 + 0.1]))
    weight.grad = torch.tensor([0.0, 0.0])
    optimizer.step()  # averages 1/2·2 and 3/4·4, corrected by 1 − 1/4 and 1 − 9/16
    moved = (0.25 * 4 / 0.75) / (0.75 * 0.25 * 16 / (1 - 0.75**2)) ** 0.5
    torch.testing.assert_close(weight.detach()[0], torch.tensor(1.8 * 0.95 - 0.1 * moved))


def timms():
    """A name for each class of optimizer in timm."""
    timm_optim = pytest.importorskip("timm.optim")
    names = {}
    for name in timm_optim.list_optimizers():
        info = timm_optim.get_optimizer_info(name)
        if not (info.second_order or name.startswith(("bnb", "fused", "kron"))):  # need CUDA, or compile for long
            names.setdefault(str(info.opt_class), name)
    return [name for name in names.values() if name not in ("sgd", "adamw")]


def test_lamb_by_hand():
    pytest.importorskip("timm")
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    settings = ["SOLVER.TYPE", "LAMB", "SOLVER.LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.EPS", "1e-12"]
    optimizer = build_optimizer(load_cfg(None, settings), [weight])
    weight.grad = torch.tensor([[0.6, -0.6]])  # timm first divides by a global norm above 1; this one is below
    optimizer.step()
    update = torch.tensor([[1.0, -1.0]]) + 0.5 * torch.tensor([[3.0, 4.0]])  # Adam's, and the decay
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0]]) - 0.1 * 5 / update.norm() * update)


def trained(name, steps, state=None):
    """Train with an optimizer of timm; return the weights and the saved state."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((4, 4), (4,), (4, 3, 3, 3))]
    cfg = load_cfg(None, ["SOLVER.TYPE", name, "SOLVER.LR", "0.01"])
    step = TrainStep(Distiller(nn.ParameterList(weights)), SummedLosses, None, cfg)
    step.optimizer = optimizer = build_optimizer(cfg, weights, weights[1:2])
    run = TrainingState(step, {})
    if state is not None:
        state["distiller"] = {key: value.clone() for key, value in state["distiller"].items()}
        run.restore(state, RunFolder("output", "run"))
    for step in steps:
        set_learning_rate(optimizer, 0.01 / (1 + step))
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(10 * step + number))
        optimizer.step()
    return weights, run.state_dict()


def test_all_of_timms_optimizers_resume(tmp_path):
    names = timms()
    assert len(names) > 15
    for name in names:
        whole, _ = trained(name, range(4))
        _, state = trained(name, range(2))
        torch.save(state, tmp_path / "state.pth")
        resumed, _ = trained(name, range(2, 4), torch.load(tmp_path / "state.pth", weights_only=True))
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed)), name


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["TYPE", "kron"], "SOLVER.TYPE kron does not save all of its state"),
        (["TYPE", "adahessian"], "SOLVER.TYPE adahessian needs second derivatives"),
        (["TYPE", "fusedlamb"], "SOLVER.TYPE fusedlamb cannot be used with these settings of SOLVER: "),
        (["TYPE", "lars", "BETAS", "[0.9, 0.99]"], "SOLVER.BETAS is given, but SOLVER.TYPE lars has none"),
        (["TYPE", "lamb", "BETAS", "[0.9]"], "SOLVER.BETAS is [0.9]; SOLVER.TYPE lamb has 2"),
        (
            ["TYPE", "ADAMW"],
            f"SOLVER.TYPE is 'ADAMW'; expected SGD or AdamW, or {TIMM}; did you mean AdamW",
        ),
        (
            ["TYPE", "lamp"],
            f"SOLVER.TYPE is 'lamp'; expected SGD or AdamW, or {TIMM}; did you mean lamb",
        ),
    ],
)
def test_what_timm_cannot_do(overrides, line):
    pytest.importorskip("timm")
    overrides[::2] = [f"SOLVER.{key}" for key in overrides[::2]]
    with pytest.raises(UserError) as error:
        check_settings(load_cfg(None, overrides))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(UserError, match="SOLVER.TYPE is 'lamb'; expected SGD or AdamW, or, after pip install 'timm"):
        check_settings(load_cfg(None, ["SOLVER.TYPE", "lamb"]))
