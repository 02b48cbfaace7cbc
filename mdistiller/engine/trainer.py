"""The training loop: epochs, evaluation, checkpoints, and what is logged about them."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Type

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from yacs.config import CfgNode

from .. import distributed
from ..dataset import Batch
from ..distillers import DeployedStudent, Distiller
from ..registry import Registry
from . import checkpoint
from .cfg import to_dict
from .data_parallel import average_statistics, in_parallel
from .evaluation.cost import deployed_cost
from .evaluation.evaluate import evaluate
from .evaluation.precise_bn import Statistics, estimate_statistics, eval_with, replaced_buffers
from .log import run_text
from .log.logger import RunLogger, SilentLogger, open_logger
from .meter import EpochMeter
from .run.chance import chance_warning
from .run.folder import RunFolder
from .run.nonfinite import NonFiniteLoss, save_evidence
from .run.origin import origin_of
from .run.progress import Progress
from .run.save_interval import SaveInterval
from .run.saved_state import read_latest
from .run.signals import RunStopped, StopSignals
from .solver.ema import StudentAverage
from .solver.gradients import Part, join_outputs, split_batch
from .solver.optim import learning_rate, set_learning_rate
from .solver.parameter_groups import exempt_parameters, lr_scales
from .solver.soft_labels import with_soft_labels
from .solver.update_rules import DistillationOriented, SummedLosses, UpdateRule, loss_names
from .speed.fast_networks import FastNetworks
from .speed.memory import memory_figures
from .speed.precision import pick_precision
from .training_state import TrainingState

SYNC_STEPS = 50  # steps between two transfers of losses from the device

trainer_dict: Registry[Type[Trainer]] = Registry("trainer")


@trainer_dict.register("crd")  # MDistiller's trainer for a loader with contrast samples; here CRD draws them itself
@trainer_dict.register("base")
class Trainer:
    """Trains a distiller; the same loop serves every method.

    The processes of a group run it together. Each takes its share of every batch; the main process writes the files.

    Args:
        experiment_name: folder of the run below `LOG.PREFIX`.
        distiller: on the device of the loaders' batches.
        train_loader, val_loader: from `get_dataset`; `None` for a benchmark of steps, which saves nothing.
        cfg: the resolved configuration.

    Attributes:
        update_rule: how the losses of a step change the parameters.
        average: of the student's weights, which is evaluated and deployed; `None` without `SOLVER.EMA`.
        state: what is saved and restored: weights, optimizer, progress, random numbers.
        networks: the student and the teacher in their fastest form; set by `prepare`.
    """

    update_rule: Type[UpdateRule] = SummedLosses

    def __init__(
        self, experiment_name: str, distiller: Distiller, train_loader: Any, val_loader: Any, cfg: CfgNode
    ) -> None:
        self.name = experiment_name
        self.folder = RunFolder(cfg.LOG.PREFIX, experiment_name)
        self.distiller = distiller.to(memory_format=torch.channels_last) if distiller.channels_last else distiller
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.cfg = cfg
        self.origin: Dict[str, Any] = {}
        if train_loader is not None and val_loader is not None:
            self.origin = distributed.run_on_main(partial(origin_of, train_loader, val_loader, distiller.teacher))
        self.references = run_text.read_references(cfg.EXPERIMENT.REFERENCE)
        self.device = next(distiller.parameters()).device
        self.precision = pick_precision(cfg.SOLVER.AMP, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self.update = self.update_rule(
            cfg,
            distiller.get_learnable_parameters(),
            self.scaler,
            exempt_parameters(distiller, cfg),
            lr_scales(distiller, cfg),
        )
        self.optimizer = self.update.optimizer
        self.average = StudentAverage(self.distiller, cfg.SOLVER.EMA) if cfg.SOLVER.EMA > 0 else None
        self.state = TrainingState(distiller, self.optimizer, self.scaler, cfg, train_loader, self.origin, self.average)
        self.teacher_accuracy: Dict[str, float] = {}  # percent
        self.statistics: Statistics = {}  # BatchNorm's, of the last evaluation, where they were re-estimated
        self.stop = StopSignals()
        self.save_interval = SaveInterval(cfg.SOLVER.CHECKPOINT_EVERY)
        self.logger: RunLogger = SilentLogger()
        self.networks: Optional[FastNetworks] = None
        self._parallel: Optional[nn.Module] = None  # averages gradients over the processes of a group
        # Shifted back by the time that an interrupted process had spent on the epoch.
        self._epoch_start = time.perf_counter()

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.state.progress

    @property
    def meter(self) -> EpochMeter:
        """Losses and accuracy of the current epoch."""
        return self.state.meter

    def train(self, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
        """Run the remaining epochs; return the summary that is also written to summary.json.

        Raises:
            UserError: the folder holds another run, cannot be written to, or has nothing to resume from.
            RunStopped: SIGINT or SIGTERM arrived; the state is saved.
        """
        self.check_losses()
        with self.folder.claim(resume, overwrite) as resumed:
            notes: List[str] = []
            if resumed:
                notes = self.state.restore(distributed.run_on_main(partial(read_latest, self.folder)), self.folder)
            elif resume:
                notes = [f"note: nothing was saved in {self.folder.path} yet; starting from the beginning"]
            steps_done = self.progress.epoch * len(self.train_loader) + self.progress.step
            with open_logger(self.folder, self.cfg, self.progress, steps_done, resumed) as self.logger:
                for note in notes:
                    self.logger.say(note)
                with self.stop:
                    summary = self._run_and_save(resumed)
                self.logger.finish(summary)
        return summary

    def _run_and_save(self, resumed: bool) -> Dict[str, Any]:
        """Run the epochs; on a signal or a non-finite loss, save the state and raise."""
        try:
            try:
                return self._run(resumed)
            except RunStopped as stopped:
                self._save_within_epoch()
                where = f"epoch {self.progress.epoch + 1}, step {self.progress.step} of {len(self.train_loader)}"
                self.logger.say(f"{stopped} at {where}; saved, continue with --resume")
                raise
        except NonFiniteLoss as error:
            raise save_evidence(error, self.state.state_dict(), self.folder.nonfinite) from None

    def _run(self, resumed: bool) -> Dict[str, Any]:
        self._epoch_start = time.perf_counter() - self.progress.epoch_seconds
        self._announce(resumed)
        self.prepare()
        while self.progress.epoch < self.cfg.SOLVER.EPOCHS:
            self._epoch_start = time.perf_counter() - self.progress.epoch_seconds
            self.stop.check()
            row = self.train_epoch(self.progress.epoch + 1)
            train_seconds = time.perf_counter() - self._epoch_start
            row.update(self.validate())  # may raise RunStopped, so the totals are updated afterwards
            row.update(memory_figures(self.device))
            self._finish_epoch(train_seconds)
            distributed.run_on_main(partial(self._log_epoch, row))
            self.save()
        summary = run_text.summary_of(
            self.name,
            self.cfg,
            self.train_loader,
            self.val_loader,
            self.progress,
            self.teacher_accuracy,
            self.device,
            self.precision,
            self.origin,
            deployed_cost(self.distiller.student, self.distiller.head, self.train_loader.info.input_size),
        )
        self.logger.say(run_text.final_table(summary, self.references))
        self.logger.say(run_text.final_line(summary))
        return summary

    def prepare(self) -> None:
        """Make the networks ready for `train_epoch`: gradient averaging, fast inference form, teacher cache."""
        self.start_parallel()
        self.networks = FastNetworks(self.distiller, self.train_loader, self.cfg, self.precision, self.logger.say)

    def start_parallel(self) -> None:
        """In a process group, average gradients over the processes from now on."""
        self.distiller.train()
        if distributed.get_world_size() > 1:
            self._parallel = in_parallel(self.distiller, self.cfg.SOLVER.SYNC_BN)
            if self.average is not None:
                self.average.start_parallel(self.cfg.SOLVER.SYNC_BN)

    def check_losses(self) -> None:
        """Raise a UserError if the update rule cannot use the losses of this distiller; nothing is written."""
        if type(self.update).check is UpdateRule.check:
            return
        size = self.train_loader.info.input_size
        image, label = torch.zeros(2, 3, size, size, device=self.device), torch.zeros(2, device=self.device).long()
        with self.precision.autocast():
            names = loss_names(self.distiller, image=image, target=label, index=label, epoch=self.progress.epoch + 1)
        if names is not None:
            self.update.check(names)

    def _announce(self, resumed: bool) -> None:
        loaders = self.train_loader, self.val_loader
        self.logger.say(run_text.first_line(self.cfg, *loaders, self.device, self.precision, self.folder.path))
        for line in run_text.opening_lines(self.cfg, self.distiller, self.train_loader):
            self.logger.say(line)
        if resumed:
            self.logger.say(run_text.resumed_line(self.progress, self.cfg.SOLVER.EPOCHS, len(self.train_loader)))
        teacher = self.distiller.teacher
        if teacher is not None:
            self.teacher_accuracy = evaluate(
                lambda image: {"deployed": teacher(image)[0]}, self.val_loader, self.stop.check
            )
            top1 = self.teacher_accuracy["deployed_top1"]
            self.logger.say(f"teacher {self.cfg.DISTILLER.TEACHER}: top-1 {top1:.2f}")
            warning = chance_warning(top1, self.train_loader.info.num_classes, self.val_loader.num_images)
            if warning:
                self.logger.say(warning)

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch in the distiller's memory format, with cached teacher outputs."""
        assert self.networks is not None, "call prepare first"
        batches = map(self.in_memory_format, self.train_loader.iterate(self.progress.step))
        return self.networks.serve(batches, self.progress.step)

    def in_memory_format(self, batch: Batch) -> Batch:
        """Return a batch whose images have the strides that the distiller expects."""
        return batch if self.distiller.channels_last else {**batch, "image": batch["image"].contiguous()}

    def train_epoch(self, epoch: int, batches: Optional[Iterable[Batch]] = None) -> Dict[str, Any]:
        """Train on the remaining batches of an epoch; return its row of metrics.jsonl, without accuracies.

        Args:
            epoch: counted from 1.
            batches: by default `self.batches()`.
        """
        assert self.networks is not None, "call prepare first"
        self.distiller.train()
        self.train_loader.set_epoch(epoch)
        num_steps, meter = len(self.train_loader), self.meter
        first_step = (epoch - 1) * num_steps
        with self._progress_bar(epoch) as bar, self.networks.in_place():
            remaining = self.batches() if batches is None else batches
            for step, batch in enumerate(remaining, start=self.progress.step + 1):
                losses, logits = self.train_step(batch, epoch, first_step + step - 1, num_steps)
                meter.add(step, losses, logits, batch)
                self.progress.step = step
                if step % SYNC_STEPS == 0 or step == num_steps:
                    self._log_steps(meter.sync(), first_step)
                    bar.update(meter.images - bar.n)
                    bar.set_postfix(loss=f"{meter.averages()['loss']:.3f}")
                if self.save_interval.due(first_step + step):
                    self._save_within_epoch()
                self.stop.check()
        seconds = time.perf_counter() - self._epoch_start
        return {
            "epoch": epoch,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            **meter.averages(),
            "images_per_second": round(meter.images / seconds, 1),
            "seconds": round(seconds, 2),
        }

    def _progress_bar(self, epoch: int) -> tqdm:
        return tqdm(
            total=self.train_loader.num_images,
            initial=self.meter.images,
            desc=f"epoch {epoch}/{self.cfg.SOLVER.EPOCHS}",
            unit="img",
            leave=False,
            disable=None if distributed.is_main_process() else True,  # None: no bar if stderr is not a terminal
        )

    def train_step(
        self, batch: Batch, epoch: int, global_step: int, steps_per_epoch: int
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Train on one batch; return its scalar losses by name and the student's logits `[B, N]`.

        Args:
            batch: as `batches` yields it.
            epoch: counted from 1.
            global_step: counted from 0 over the run.
            steps_per_epoch: for the learning rate.
        """
        set_learning_rate(self.optimizer, learning_rate(self.cfg, global_step, steps_per_epoch))
        step, world_size = global_step % steps_per_epoch, distributed.get_world_size()
        num_images = len(batch["target"]) if world_size == 1 else self.train_loader.images_in(step)
        parts = split_batch(batch, self.cfg.SOLVER.ACCUMULATE, num_images)
        self.update.zero_grad()
        outputs = []
        for number, part in enumerate(parts, start=1):
            with self._part_in_use(part, is_last=number == len(parts)):
                outputs.append((part, *self._add_gradients(part.batch, epoch, num_images)))
        self.update.step()
        if self.average is not None:
            self.average.update()
        return join_outputs(outputs)

    def _add_gradients(self, batch: Batch, epoch: int, num_images: int) -> Tuple[Dict[str, Tensor], Tensor]:
        """Compute the gradients of a part of a step; return its losses and logits. The step has `num_images`."""
        if "soft_target" in batch or self.cfg.SOLVER.LABEL_SMOOTHING:
            num_classes = self.train_loader.info.num_classes
            batch = with_soft_labels(batch, self.cfg.SOLVER.LABEL_SMOOTHING, num_classes)
        with self.precision.autocast():
            logits, losses = (self._parallel or self.distiller)(**batch, epoch=epoch)
        # Distillers written for MDistiller may return a loss for each image; MDistiller averages them too.
        losses = {name: loss.mean() if loss.ndim else loss for name, loss in losses.items()}
        # DDP averages over the processes; the result is the mean over all images of the step
        weight = len(batch["target"]) * distributed.get_world_size() / num_images
        self.update.backward(losses if weight == 1 else {name: weight * loss for name, loss in losses.items()})
        return {name: loss.detach() for name, loss in losses.items()}, logits.detach()

    @contextmanager
    def _part_in_use(self, part: Part, is_last: bool) -> Iterator[None]:
        """Look up cached teacher outputs for a part; processes exchange gradients after the last one only."""
        with ExitStack() as stack:
            if self.networks is not None:
                stack.enter_context(self.networks.part_in_use(part.batch, part.rows))
            if isinstance(self._parallel, DistributedDataParallel) and not is_last:
                stack.enter_context(self._parallel.no_sync())
            yield

    def validate(self) -> Dict[str, float]:
        """Evaluate on the validation set; return top-1 and top-5 in percent by name.

        With an average of the weights, the accuracies are those of the average, and `plain` is the trained student's.
        """
        accuracy = self._evaluate()
        if self.average is not None:
            plain = {f"plain_top{k}": accuracy[f"deployed_top{k}"] for k in (1, 5)}
            with self.average.in_place():
                accuracy = {**self._evaluate(), **plain}
        self.progress.last = accuracy
        return accuracy

    def _evaluate(self) -> Dict[str, float]:
        average_statistics(self.distiller)
        if self.cfg.SOLVER.PRECISE_BN:
            batches = map(self.in_memory_format, self.train_loader.sample(self.cfg.SOLVER.PRECISE_BN))
            self.statistics = estimate_statistics(self.distiller, batches, self.precision, self.stop.check)
        self.distiller.eval()
        forward = partial(eval_with, self.distiller, self.statistics, self.cfg.SOLVER.PRECISE_BN_COMPARE)
        return evaluate(forward, self.val_loader, self.stop.check)

    def start_epoch(self, epoch: int) -> None:
        """Reset what is counted within an epoch; `epoch` counts from 1. Timing goes on."""
        self.progress.step, self.progress.epoch_seconds = 0, 0.0
        self.state.meter = EpochMeter(epoch)

    def _finish_epoch(self, train_seconds: float) -> None:
        self.progress.train_seconds += train_seconds
        self.progress.images += self.meter.images
        self.progress.epoch += 1
        self.start_epoch(self.progress.epoch + 1)
        self.progress.total_seconds += time.perf_counter() - self._epoch_start

    def _log_epoch(self, row: Dict[str, Any]) -> None:
        self.logger.epoch(row)
        self.logger.say(run_text.epoch_line(row, self.cfg.SOLVER.EPOCHS, self.progress.total_seconds))

    def _log_steps(self, fetched: Dict[int, Dict[str, float]], first_step: int) -> None:
        for step, values in fetched.items():
            if (first_step + step) % self.cfg.LOG.TENSORBOARD_FREQ == 0:
                self.logger.steps(first_step + step, values)

    def save(self) -> None:
        """Save the student and the state after an epoch."""
        improved = self.progress.last["deployed_top1"] > self.progress.best.get("deployed_top1", -1.0)
        if improved:
            self.progress.best = {**self.progress.last, "epoch": self.progress.epoch}
        distributed.run_on_main(partial(self._write, self.deployed_student(), self.state.state_dict(), improved))
        self.save_interval.reset()

    def _write(self, student: Dict[str, Any], state: Dict[str, Any], improved: bool) -> None:
        checkpoint.save(student, self.folder.student_latest)
        if improved:
            checkpoint.save(student, self.folder.student_best)
            checkpoint.save(state, self.folder.best)
        if self.progress.epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
            checkpoint.save(state, self.folder.kept(self.progress.epoch))
        checkpoint.save(state, self.folder.latest, self.folder.previous)

    def _save_within_epoch(self) -> None:
        fetched = self.meter.sync()
        self.progress.epoch_seconds = time.perf_counter() - self._epoch_start
        distributed.run_on_main(partial(self._write_within_epoch, fetched, self.state.state_dict()))
        self.save_interval.reset()

    def _write_within_epoch(self, fetched: Dict[int, Dict[str, float]], state: Dict[str, Any]) -> None:
        self._log_steps(fetched, self.progress.epoch * len(self.train_loader))
        self.logger.flush()
        checkpoint.save(state, self.folder.latest, self.folder.previous)

    def deployed_student(self) -> Dict[str, Any]:
        """Return the checkpoint of the student as it was in the last evaluation, with the accuracies of that."""
        last = self.progress.last
        accuracy = {name: value for name, value in last.items() if not name.startswith(("running_", "plain_"))}
        if self.distiller.tests_otherwise:
            accuracy = {f"deployed_top{k}": last[f"bare_top{k}"] for k in (1, 5)}
        with ExitStack() as stack:
            if self.average is not None:
                stack.enter_context(self.average.in_place())
            stack.enter_context(replaced_buffers(self.distiller, self.statistics))
            return checkpoint.describe_student(
                DeployedStudent(self.distiller.student, self.distiller.head),
                self.cfg.DISTILLER.STUDENT,
                self.train_loader.info,
                accuracy,
                self.progress.epoch,
                to_dict(self.cfg),
            )


@trainer_dict.register("crd_dot")
@trainer_dict.register("dot")
class DOTTrainer(Trainer):
    """The same loop with the update rule of DOT."""

    update_rule = DistillationOriented
