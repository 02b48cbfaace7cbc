"""A training step: forward and backward passes in micro-batches, the update, and the average of the weights."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Type

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from .. import distributed
from ..dataset import Batch
from ..distillers import Distiller
from .run.nonfinite import NonFiniteLoss
from .solver.data_parallel import in_parallel, unsynchronized
from .solver.ema import StudentAverage
from .solver.gradients import MicroBatch, join_outputs, split_batch
from .solver.optim import learning_rate, set_learning_rate
from .solver.parameter_groups import exempt_parameters, lr_scales
from .solver.soft_labels import with_soft_labels
from .solver.update_rules import UpdateRule
from .speed.fast_networks import FastNetworks
from .speed.precision import pick_precision
from .trial import trial_losses


class TrainStep:
    """Trains a distiller on one batch after another.

    Args:
        distiller: the distiller, on its device and in its memory format.
        update_rule: the rule by which the losses of a step change the parameters.
        train_loader: the loader of the batches; `None` for a benchmark of steps in one process.
        cfg: the resolved configuration.

    Attributes:
        precision: the precision of the forward passes.
        update, optimizer, scaler: the update rule, its optimizer and the scaler of the losses.
        average: the average of the student's weights; `None` without `SOLVER.EMA`.
        networks: the student and the teacher in their fastest form; `None` for the networks as built.
    """

    def __init__(self, distiller: Distiller, update_rule: Type[UpdateRule], train_loader: Any, cfg: CfgNode) -> None:
        self.distiller = distiller
        self.train_loader = train_loader
        self.cfg = cfg
        device = next(distiller.parameters()).device
        self.precision = pick_precision(cfg.SOLVER.AMP, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.needs_scaler)
        self.update = update_rule(
            cfg,
            distiller.get_learnable_parameters(),
            self.scaler,
            exempt_parameters(distiller, cfg),
            lr_scales(distiller, cfg),
        )
        self.optimizer = self.update.optimizer
        self.average = StudentAverage(distiller, cfg.SOLVER.EMA) if cfg.SOLVER.EMA > 0 else None
        self.networks: Optional[FastNetworks] = None
        self._parallel: Optional[nn.Module] = None  # averages gradients over the processes of a group

    def check_losses(self, epoch: int) -> None:
        """Raise a UserError if this distiller cannot train, or the update rule cannot use its losses.

        Args:
            epoch: the next epoch, counted from 1.
        """
        info = self.train_loader.info
        names = trial_losses(self.distiller, info.input_size, info.num_classes, epoch, self.precision)
        if names is not None:
            self.update.check(names)

    def start_parallel(self, say: Callable[[str], None]) -> None:
        """In a process group, average gradients over the processes from now on; `say` receives lines for the user."""
        self.distiller.train()
        if distributed.get_world_size() > 1:
            self._parallel = in_parallel(self.distiller, self.cfg.SOLVER.SYNC_BN)
            if self.average is not None:
                self.average.start_parallel(self.cfg.SOLVER.SYNC_BN)
            left = unsynchronized(self.distiller) if self.cfg.SOLVER.SYNC_BN else []
            if left:
                say(f"note: SOLVER.SYNC_BN does not change {', '.join(left)}: they see the images of one process")

    def __call__(
        self, batch: Batch, epoch: int, global_step: int, steps_per_epoch: int
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Train on one batch; return its scalar losses by name and the student's logits `[B, N]`.

        Args:
            batch: the batch, in the distiller's memory format.
            epoch: the epoch, counted from 1.
            global_step: the step, counted from 0 over the run.
            steps_per_epoch: the number of steps per epoch, from which the learning rate follows.
        """
        set_learning_rate(self.optimizer, learning_rate(self.cfg, global_step, steps_per_epoch))
        step, world_size = global_step % steps_per_epoch, distributed.get_world_size()
        num_images = len(batch["target"]) if world_size == 1 else self.train_loader.images_in(step)
        micro_batches = split_batch(batch, self.cfg.SOLVER.ACCUMULATE, num_images)
        self.update.zero_grad()
        if self.networks is not None:
            self.networks.begin_step()
        outputs = []
        for number, micro_batch in enumerate(micro_batches, start=1):
            with self._micro_batch_in_use(micro_batch, is_last=number == len(micro_batches)):
                outputs.append((micro_batch, *self._add_gradients(micro_batch.batch, epoch, num_images)))
        self.update.step()
        if self.average is not None:
            self.average.update()
        return join_outputs(outputs)

    def check_scale(self, epoch: int, step: int) -> None:
        """Raise NonFiniteLoss if float16's gradients were infinite so often that the scale of the loss is below 1."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # halved in each such step, from 65,536
            raise NonFiniteLoss(
                f"the gradients are not finite in float16 at epoch {epoch}, step {step}, even with a loss scale below"
                " 1; training stopped: set SOLVER.AMP off or bf16, and start again",
                {"epoch": epoch, "step": step},
            )

    def _add_gradients(self, batch: Batch, epoch: int, num_images: int) -> Tuple[Dict[str, Tensor], Tensor]:
        """Compute the gradients of a micro-batch; return its losses and logits. The step has `num_images`."""
        smoothing = self.cfg.SOLVER.LABEL_SMOOTHING
        if smoothing or "soft_target" in batch or "label_weight" in batch:
            batch = with_soft_labels(batch, smoothing, self.train_loader.info.num_classes)
        with self.precision.autocast():
            logits, losses = (self._parallel or self.distiller)(**batch, epoch=epoch)
        # Distillers written for MDistiller may return a loss for each image; MDistiller averages them too.
        losses = {name: loss.mean() if loss.ndim else loss for name, loss in losses.items()}
        # DDP averages over the processes; the result is the mean over all images of the step.
        weight = len(batch["target"]) * distributed.get_world_size() / num_images
        self.update.backward(losses if weight == 1 else {name: weight * loss for name, loss in losses.items()})
        return {name: loss.detach() for name, loss in losses.items()}, logits.detach()

    @contextmanager
    def _micro_batch_in_use(self, micro_batch: MicroBatch, is_last: bool) -> Iterator[None]:
        """Look up cached teacher outputs of a micro-batch; processes exchange gradients after the last one only."""
        with ExitStack() as stack:
            if self.networks is not None:
                stack.enter_context(self.networks.micro_batch_in_use(micro_batch.batch, micro_batch.rows))
            if isinstance(self._parallel, DistributedDataParallel) and not is_last:
                stack.enter_context(self._parallel.no_sync())
            yield
