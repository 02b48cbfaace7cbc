"""How the losses of a step change the parameters: one gradient of their sum, or one each for task and distillation."""

from __future__ import annotations

from functools import reduce
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from ... import distributed
from ...errors import refuse
from .optim import build_optimizer
from .parameter_groups import parameter_groups

Losses = Dict[str, Tensor]  # named scalars


class UpdateRule:
    """Turns losses into a step of `optimizer`, which holds all state that a resumed run needs.

    Args:
        cfg: the resolved configuration.
        parameters: the trained parameters, on their final device and in their final memory format.
        scaler: the gradient scaler; enabled for float16 only.
        no_decay: the parameters among these that take no weight decay.
        lr_scales: the factors of the learning rate, for parameters whose factor is not 1.
    """

    def __init__(
        self,
        cfg: CfgNode,
        parameters: List[nn.Parameter],
        scaler: torch.amp.GradScaler,
        no_decay: Sequence[nn.Parameter] = (),
        lr_scales: Mapping[nn.Parameter, float] = {},
    ) -> None:
        self.optimizer = build_optimizer(cfg, parameters, no_decay, lr_scales)
        self.scaler = scaler
        self.parameters = parameters
        self.max_norm = cfg.SOLVER.CLIP_GRAD_NORM

    def zero_grad(self) -> None:
        """Drop the gradients of the step before."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Change the parameters by the gradients of all calls of `backward` since `zero_grad`."""
        if self.max_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @classmethod
    def config_errors(cls, cfg: CfgNode, losses: Optional[Iterable[str]] = None) -> Iterator[str]:
        """Yield one line for each setting that the rule does not support.

        Args:
            losses: names of the losses; `None` if only a training step can tell.
        """
        yield from ()

    def check(self, losses: Iterable[str]) -> None:
        """Raise a UserError if losses of these names are not what the rule needs."""

    def backward(self, losses: Losses) -> None:
        """Add the gradients of losses to those of the optimizer's parameters."""
        raise NotImplementedError


class SummedLosses(UpdateRule):
    """One gradient: that of the sum of all losses."""

    def backward(self, losses: Losses) -> None:
        self.scaler.scale(reduce(torch.add, losses.values())).backward()


class DistillationOriented(UpdateRule):
    """DOT: gradients and momenta of their own for `loss_ce` and for all other losses together.

    With learning rate `γ`, momentum `μ`, weight decay `λ` and `Δ = SOLVER.DOT.DELTA`, a parameter that both reach takes
    `v_ce ← g_ce + λθ + (μ − Δ) v_ce`, `v_kd ← g_kd + (μ + Δ) v_kd`, `θ ← θ − γ (v_ce + v_kd)`. A parameter that one of
    them alone reaches takes plain SGD, `v ← g + λθ + μv`, `θ ← θ − γv`.

    The paper's algorithm has no weight decay and does not mention parameters that one loss alone reaches. Both follow
    the authors' code, including one detail: a parameter that only the distillation losses reach does not decay in its
    first step.
    With `Δ = 0`, a parameter that the same losses reach in every step takes SGD on their sum, apart from that detail.
    For parameters without weight decay, `λ` is 0. With `SOLVER.NESTEROV`, each step uses Nesterov's momentum instead.

    The constructor trusts the settings; `config_errors` validates them.

    Source: "DOT: A Distillation-Oriented Trainer" (2023).
    """

    def __init__(
        self,
        cfg: CfgNode,
        parameters: List[nn.Parameter],
        scaler: torch.amp.GradScaler,
        no_decay: Sequence[nn.Parameter] = (),
        lr_scales: Mapping[nn.Parameter, float] = {},
    ) -> None:
        super().__init__(cfg, parameters, scaler, no_decay, lr_scales)
        momentum, delta = cfg.SOLVER.MOMENTUM, cfg.SOLVER.DOT.DELTA
        self.task = parameters
        # Aliases of the weights, so that the optimizer keeps a separate gradient and momentum for each.
        names = ([nn.Parameter(p.detach()) for p in parameters] for _ in range(3))
        self.distillation, self.task_alone, self.distillation_alone = names
        for group in self.optimizer.param_groups:
            group["momentum"] = momentum - delta
        self.optimizer.add_param_group({"params": self.distillation, "momentum": momentum + delta, "weight_decay": 0.0})
        exempt = {id(parameter) for parameter in no_decay}
        alone_no_decay = [alone for alone, p in zip(self.task_alone, parameters) if id(p) in exempt]
        for group in parameter_groups(self.task_alone, alone_no_decay, {}):
            self.optimizer.add_param_group({**group, "momentum": momentum})
        self.optimizer.add_param_group({"params": self.distillation_alone, "momentum": momentum, "weight_decay": 0.0})
        self.weight_decays = [0.0 if id(p) in exempt else cfg.SOLVER.WEIGHT_DECAY for p in parameters]

    @classmethod
    def config_errors(cls, cfg: CfgNode, losses: Optional[Iterable[str]] = None) -> Iterator[str]:
        momentum, delta = cfg.SOLVER.MOMENTUM, cfg.SOLVER.DOT.DELTA
        if not 0 <= delta <= momentum or momentum + delta >= 1:
            yield (
                f"SOLVER.DOT.DELTA is {delta} with SOLVER.MOMENTUM {momentum}; expected a DELTA from 0 to MOMENTUM,"
                " with MOMENTUM + DELTA below 1 (0.075 is the default)"
            )
        if momentum == 0:
            yield "SOLVER.MOMENTUM is 0, without momentum SOLVER.TRAINER dot is plain SGD; use SOLVER.TRAINER base"
        solver = cfg.SOLVER
        for key, given, neutral in (
            ("TYPE", solver.TYPE, "SGD"),
            ("ACCUMULATE", solver.ACCUMULATE, 1),
            # On a GPU the student is compiled, and frees its buffers in the first of two backward passes.
            ("COMPILE", solver.COMPILE if torch.cuda.is_available() else "off", "off"),
            ("CLIP_GRAD_NORM", solver.CLIP_GRAD_NORM, 0.0),
            ("LAYER_DECAY", solver.LAYER_DECAY, 1.0),
            ("BACKBONE_LR_FACTOR", solver.BACKBONE_LR_FACTOR, 1.0),
        ):
            if given != neutral:
                yield f"SOLVER.{key} is {given} with SOLVER.TRAINER dot; expected {neutral}, or SOLVER.TRAINER base"
        if distributed.get_world_size() > 1:
            yield "SOLVER.TRAINER dot trains in one process; start one, or use SOLVER.TRAINER base"
        if losses is not None:
            yield from cls._missing(losses)

    @staticmethod
    def _missing(losses: Iterable[str]) -> Iterator[str]:
        if not {"loss_ce"} < set(losses):
            yield (
                f"SOLVER.TRAINER dot needs loss_ce and another loss, this distiller gives {', '.join(sorted(losses))};"
                " use SOLVER.TRAINER base"
            )

    def check(self, losses: Iterable[str]) -> None:
        refuse(self._missing(losses))

    def backward(self, losses: Losses) -> None:
        self.check(losses)
        others = [loss for name, loss in losses.items() if name != "loss_ce"]
        self.scaler.scale(reduce(torch.add, others)).backward(retain_graph=True)
        for task, distillation in zip(self.task, self.distillation):
            distillation.grad, task.grad = task.grad, None
        self.scaler.scale(losses["loss_ce"]).backward()
        for task, distillation, task_alone, distillation_alone, weight_decay in zip(
            self.task, self.distillation, self.task_alone, self.distillation_alone, self.weight_decays
        ):
            if task.grad is not None and distillation.grad is not None:
                self._pass_momentum(task_alone, task)
                self._pass_momentum(distillation_alone, distillation)
            elif task.grad is not None:
                self._pass_momentum(task, task_alone)
                task_alone.grad, task.grad = task.grad, None
            elif distillation.grad is not None:
                self._pass_momentum(distillation, distillation_alone)
                distillation_alone.grad, distillation.grad = distillation.grad, None
                if distillation_alone in self.optimizer.state:  # not in its first step
                    decay = weight_decay * distillation_alone.detach()
                    distillation_alone.grad.add_(self.scaler.scale(decay))

    def _pass_momentum(self, source: nn.Parameter, target: nn.Parameter) -> None:
        """Move the momentum of a parameter that other losses reach than in the last step."""
        if source in self.optimizer.state:
            self.optimizer.state[target] = self.optimizer.state.pop(source)
