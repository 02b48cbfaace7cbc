"""DOT: the update rule against its definition, and its place in the trainer."""

import copy

import pytest
import torch
from torch import nn

from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.update_rules import DistillationOriented, SummedLosses
from mdistiller.engine.trainer import Trainer, trainer_dict
from mdistiller.engine.validate import config_errors
from mdistiller.errors import UserError, refuse
from mdistiller.models import build_model
from tests.conftest import take_step


class Toy(nn.Module):
    """Weights that both losses reach, that one of them reaches, and that none does."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name in ("shared", "task", "distillation", "idle"):
            self.register_parameter(name, nn.Parameter(torch.randn(4, generator=generator)))

    def losses(self, step):
        x = torch.randn(4, generator=torch.Generator().manual_seed(step))
        return {
            "loss_ce": ((self.shared * x).sum() + self.task.sin().sum()) ** 2 / 10,
            "loss_kd": (self.shared - x).square().mean() + (self.distillation * x).cos().sum(),
            "loss_other": (self.shared.sum() - 1).abs() * 0.3,
        }


def rule(model, *overrides, of=DistillationOriented, scale=None, no_decay=()):
    cfg = load_cfg(None, ["SOLVER.LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.01", *overrides])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    return of(cfg, list(model.parameters()), scaler, no_decay)


def run(update, model, steps, first=0):
    for step in range(first, first + steps):
        for group in update.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        take_step(update, model.losses(step))


def by_hand(model, steps, delta=0.075, momentum=0.9, decay=0.01):
    """Two gradients and momentum buffers where both losses reach a parameter, plain SGD where one of them does."""
    names = ("shared", "task", "distillation")
    task, distillation = ({name: torch.zeros(4) for name in names} for _ in range(2))
    for step in range(steps):
        losses = model.losses(step)
        parameters = [getattr(model, name) for name in names]
        kwargs = {"retain_graph": True, "allow_unused": True}
        of_task = torch.autograd.grad(losses["loss_ce"], parameters, **kwargs)
        of_distillation = torch.autograd.grad(losses["loss_kd"] + losses["loss_other"], parameters, **kwargs)
        with torch.no_grad():
            for name, parameter, g, h in zip(names, parameters, of_task, of_distillation):
                if g is not None:
                    own = momentum if h is None else momentum - delta
                    task[name] = own * task[name] + g + decay * parameter
                if h is not None:
                    own = momentum if g is None else momentum + delta
                    lone_decay = decay if g is None and step > 0 else 0
                    distillation[name] = own * distillation[name] + h + lone_decay * parameter
                parameter -= 0.1 / (1 + step) * (task[name] + distillation[name])


def check_equal(model, other):
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("absent", ["loss_ce", "loss_kd"])
def test_momentum_is_kept_while_a_loss_does_not_reach_a_parameter(absent):
    model, reference = Toy(), Toy().shared.detach()
    update = rule(model, "SOLVER.WEIGHT_DECAY", "0.0")
    buffers = {"loss_ce": torch.zeros(4), "loss_kd": torch.zeros(4)}
    for step in range(5):
        x = torch.randn(4, generator=torch.Generator().manual_seed(step))
        everywhere = step % 2 == 0
        terms = {"loss_ce": (model.shared * x).sum() ** 2 / 10, "loss_kd": (model.shared - x).square().mean()}
        grads = {"loss_ce": x * (reference * x).sum() / 5, "loss_kd": (reference - x) / 2}
        if not everywhere:
            terms[absent] = model.idle.sum() ** 2
            del grads[absent]
        take_step(update, terms)
        deltas = {"loss_ce": -0.075, "loss_kd": 0.075} if everywhere else dict.fromkeys(grads, 0.0)
        for name, grad in grads.items():
            buffers[name] = (0.9 + deltas[name]) * buffers[name] + grad
        reference = reference - 0.1 * sum(buffers[name] for name in grads)
        torch.testing.assert_close(model.shared.detach(), reference)


@pytest.mark.parametrize("delta", [0.0, 0.075])
def test_several_steps_equal_the_definition(delta):
    model, reference = Toy(), Toy()
    run(rule(model, "SOLVER.DOT.DELTA", str(delta)), model, 6)
    by_hand(reference, 6, delta)
    check_equal(model, reference)
    assert not torch.equal(model.shared, Toy().shared)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_without_weight_decay_for_all_parameters(scale):
    model, reference = Toy(), Toy()
    run(rule(model, scale=scale, no_decay=list(model.parameters())), model, 6)
    by_hand(reference, 6, decay=0)
    check_equal(model, reference)


@pytest.mark.parametrize("exempt", ["shared", "task", "distillation"])
def test_a_parameter_that_takes_no_weight_decay(exempt):
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update = rule(model, no_decay=[getattr(model, exempt)])
    for _ in range(2):  # what the distillation losses alone reach does not decay in its first step
        # gradients of zero, so that the weight decay alone moves a parameter
        take_step(
            update,
            {
                "loss_ce": 0 * (model.shared + model.task).sum(),
                "loss_kd": 0 * (model.shared + model.distillation).sum(),
            },
        )
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"shared", "task", "distillation"} - {exempt}


@pytest.mark.parametrize("decay", ["0", "0.01"])
@pytest.mark.parametrize("nesterov", ["False", "True"])
def test_without_a_difference_it_is_sgd_on_the_sum(nesterov, decay):
    model, reference = Toy(), Toy()
    settings = ["SOLVER.NESTEROV", nesterov, "SOLVER.WEIGHT_DECAY", decay]
    run(rule(model, "SOLVER.DOT.DELTA", "0", *settings), model, 6)
    run(rule(reference, *settings, of=SummedLosses), reference, 6)
    if decay != "0":  # what the distillation losses alone reach does not decay in its first step
        assert not torch.allclose(model.distillation, reference.distillation, rtol=1e-5, atol=1e-6)
        reference.distillation = model.distillation
    check_equal(model, reference)


def test_one_literal_step():
    weight = nn.Parameter(torch.tensor([2.0]))
    model = nn.ParameterList([weight])
    update = rule(model, "SOLVER.WEIGHT_DECAY", "0.5")
    for _ in range(2):
        take_step(update, {"loss_ce": weight * 3, "loss_kd": weight * 5})
    # step 1: 2 − 0.1 (3 + 0.5 · 2 + 5) = 1.1; step 2: 1.1 − 0.1 (0.825 · 4 + 3 + 0.5 · 1.1 + 0.975 · 5 + 5)
    assert weight.item() == pytest.approx(1.1 - 0.1 * (3.3 + 3.55 + 4.875 + 5))


def test_literal_steps_of_parameters_that_one_loss_alone_reaches():
    task, distillation = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    update = rule(nn.ParameterList([task, distillation]), "SOLVER.WEIGHT_DECAY", "0.5")
    for _ in range(2):
        take_step(update, {"loss_ce": task * 3, "loss_kd": distillation * 5})
    # step 1: 2 − 0.1 (3 + 0.5 · 2) = 1.6; step 2: 1.6 − 0.1 (0.9 · 4 + 3 + 0.5 · 1.6)
    assert task.item() == pytest.approx(1.6 - 0.1 * 7.4)
    # step 1, without decay: 2 − 0.1 · 5 = 1.5; step 2: 1.5 − 0.1 (0.9 · 5 + 5 + 0.5 · 1.5)
    assert distillation.item() == pytest.approx(1.5 - 0.1 * 10.25)


def test_the_state_resumes():
    whole, part = Toy(), Toy()
    run(rule(whole), whole, 6)
    update = rule(part)
    run(update, part, 3)
    state = copy.deepcopy(update.optimizer.state_dict())
    again = Toy()
    later = rule(again)
    again.load_state_dict(part.state_dict())
    later.optimizer.load_state_dict(state)
    run(later, again, 3, first=3)
    for (name, a), b in zip(again.named_parameters(), whole.parameters()):
        assert torch.equal(a, b), name


def test_scaled_losses_give_the_same_steps():
    model, reference = Toy(), Toy()
    run(rule(model, scale=1024.0), model, 4)
    run(rule(reference), reference, 4)
    check_equal(model, reference)


@pytest.mark.parametrize("name", ["loss_ce", "loss_kd"])
def test_an_overflow_of_either_loss_skips_the_whole_step(name):
    model = Toy()
    update = rule(model, scale=1024.0)
    losses = model.losses(0)
    losses[name] = losses[name] * float("inf")
    take_step(update, losses)
    check_equal(model, Toy())
    assert update.scaler.get_scale() < 1024


@pytest.mark.parametrize("kept", [["loss_ce"], ["loss_kd"], ["loss_kd", "loss_other"]])
def test_it_needs_the_task_and_something_else(kept):
    model = Toy()
    losses = {name: loss for name, loss in model.losses(0).items() if name in kept}
    with pytest.raises(UserError, match=f"needs loss_ce and another loss, this distiller gives {', '.join(kept)};"):
        take_step(rule(model), losses)


def check(*overrides):
    refuse(config_errors(load_cfg(None, ["SOLVER.TRAINER", "dot", *overrides])))


@pytest.mark.parametrize(("delta", "momentum"), [("0.1", "0.95"), ("0.95", "0.9"), ("-0.1", "0.9")])
def test_bad_options(delta, momentum):
    with pytest.raises(UserError, match=f"SOLVER.DOT.DELTA is {delta} with SOLVER.MOMENTUM {momentum}"):
        check("SOLVER.DOT.DELTA", delta, "SOLVER.MOMENTUM", momentum)


def test_without_momentum_it_is_refused():
    with pytest.raises(UserError, match="SOLVER.MOMENTUM is 0, .*use SOLVER.TRAINER base"):
        check("SOLVER.DOT.DELTA", "0.0", "SOLVER.MOMENTUM", "0.0")


def test_trainers_by_name():
    assert set(trainer_dict) >= {"base", "crd", "dot", "crd_dot"}
    assert trainer_dict["crd"] is trainer_dict["base"] is Trainer
    assert trainer_dict["dot"] is trainer_dict["crd_dot"]
    assert trainer_dict["dot"].update_rule is DistillationOriented
    assert Trainer.update_rule is SummedLosses


def trainer_of(name, method="KD"):
    torch.manual_seed(0)
    settings = ["SOLVER.TRAINER", name, "DATASET.INPUT_SIZE", "32", "SOLVER.AMP", "off", "DISTILLER.TYPE", method]
    cfg = load_cfg(None, settings)
    teacher = [build_model("resnet14", 5)] if distiller_dict[method].needs_teacher else [None]
    distiller = distiller_dict[method](build_model("MobileNetV2", 5), *teacher, cfg)
    return trainer_dict[name]("run", distiller, None, None, cfg)


def image_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(4, 3, 32, 32, generator=generator), "target": torch.tensor([0, 1, 2, 3])}


def test_a_step_of_the_trainer():
    trainer = trainer_of("dot")
    reference = copy.deepcopy(trainer.distiller).train()
    trainer.distiller.train()
    for step in range(2):
        trainer.train_step(image_batch(step), 1, step, 10)

    parameters = reference.get_learnable_parameters()
    task = torch.optim.SGD(parameters, 0.05, momentum=0.825, weight_decay=1e-4)
    distillation = torch.optim.SGD(parameters, 0.05, momentum=0.975)
    for step in range(2):
        _, losses = reference(**image_batch(step))
        grads = [torch.autograd.grad(losses[name], parameters, retain_graph=True) for name in ("loss_ce", "loss_kd")]
        for optimizer, of_loss in zip((task, distillation), grads):
            for parameter, grad in zip(parameters, of_loss):
                parameter.grad = grad
            optimizer.step()
    for a, b in zip(trainer.distiller.get_learnable_parameters(), parameters):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_trainer_resumes():
    whole = trainer_of("dot")
    whole.distiller.train()
    for step in range(2):
        whole.train_step(image_batch(step), 1, step, 10)
    state = copy.deepcopy(whole.state.state_dict())
    again = trainer_of("crd_dot")
    assert again.state.restore(state, again.folder) == []
    again.distiller.train()
    for trainer in (whole, again):
        trainer.train_step(image_batch(2), 2, 2, 10)
    for (name, a), b in zip(whole.distiller.named_parameters(), again.distiller.parameters()):
        assert torch.equal(a, b), name


def test_a_student_without_a_distillation_loss_is_refused_at_the_first_step():
    trainer = trainer_of("dot", method="NONE")
    trainer.distiller.train()
    with pytest.raises(UserError, match="gives loss_ce; use SOLVER.TRAINER base"):
        trainer.train_step(image_batch(0), 1, 0, 10)
