"""The training loop: epochs, evaluation, checkpoints, and what is logged about them."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Type

import torch
from torch import Tensor
from yacs.config import CfgNode

from .. import distributed
from ..dataset import Batch
from ..distillers import Distiller
from ..registry import Registry
from .evaluation.cost import deployed_cost
from .evaluation.opening import evaluate_teacher, probe_student
from .evaluation.student import StudentEvaluation
from .log import run_text
from .log.logger import RunLogger, SilentLogger, open_logger
from .log.progress_bar import progress_bar
from .meter import EpochMeter
from .notes import opening_notes
from .run.environment import machine
from .run.folder import RunFolder
from .run.nonfinite import NonFiniteLoss, save_evidence
from .run.origin import origin_of
from .run.progress import Progress
from .run.random_state import keep_random_state
from .run.records import read_references
from .run.save_interval import SaveInterval
from .run.saved_state import read_latest
from .run.signals import RunStopped, StopSignals
from .solver.update_rules import DistillationOriented, SummedLosses, UpdateRule
from .speed.fast_networks import FastNetworks, check_top_logits
from .speed.memory import memory_figures
from .step import TrainStep
from .training_state import TrainingState

SYNC_STEPS = 50  # steps between two transfers of losses from the device

trainer_dict: Registry[Type[Trainer]] = Registry("trainer")


@trainer_dict.register("crd")  # MDistiller's trainer for a loader with contrast samples; here CRD draws them itself
@trainer_dict.register("base")
class Trainer:
    """Trains a distiller; the same loop serves every method.

    The processes of a group run it together. Each takes its share of every batch; the main process writes the files.

    Args:
        experiment_name: the folder of the run below `LOG.PREFIX`.
        distiller: the distiller, on the device of the loaders' batches.
        train_loader, val_loader: the loaders of `get_dataset`; `None` for a benchmark of steps, which saves nothing.
        cfg: the resolved configuration.

    Attributes:
        update_rule: the rule by which the losses of a step change the parameters.
        step: the object that takes a training step; it holds the optimizer.
        evaluation: the object that evaluates the student and describes it for its checkpoint.
        state: the state that is saved and restored: weights, optimizer, progress, random numbers.
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
        self.references = read_references(cfg.EXPERIMENT.REFERENCE)
        self.device = next(distiller.parameters()).device
        self.stop = StopSignals()
        self.step = TrainStep(self.distiller, self.update_rule, train_loader, cfg)
        self.precision = self.step.precision
        self.evaluation = StudentEvaluation(
            self.distiller, self.step.average, val_loader, self._sample, self.precision, cfg, lambda: self.stop.check()
        )
        self.state = TrainingState(self.step, self.origin)
        self.teacher_accuracy: Dict[str, float] = {}  # percent
        self.save_interval = SaveInterval(cfg.SOLVER.CHECKPOINT_EVERY)
        self.logger: RunLogger = SilentLogger()
        # The moment at which training of the epoch began, shifted by the time that an interrupted process had spent.
        self._training_since: Optional[float] = None

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
            UserError: the method cannot train; or the folder holds another run, cannot be written to, has nothing to
                resume from, or has a state with other settings or data.
            NonFiniteLoss: a loss became NaN or infinite; the state is written to nonfinite.pth.
            RunStopped: SIGINT or SIGTERM arrived; the state is saved.
        """
        self.step.check_losses(self.progress.epoch + 1)
        check_top_logits(self.distiller, self.train_loader, self.cfg)
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
        # Counted before training, so that a student that cannot be counted is reported at once.
        with keep_random_state(self.device):  # some models draw random numbers in evaluation too
            cost = deployed_cost(self.distiller.student, self.distiller.head, self.train_loader.info.input_size)
            self._announce(resumed)
        if self.cfg.SOLVER.PROBE_EPOCHS and self.progress.epoch == self.progress.step == 0:
            self._probe()
        self.prepare()
        if self.progress.epoch < self.cfg.SOLVER.EPOCHS:
            self.progress.continue_on(machine(self.device, self.precision))
        while self.progress.epoch < self.cfg.SOLVER.EPOCHS:
            self.stop.check()
            row = self.train_epoch(self.progress.epoch + 1)
            evaluation_start = time.perf_counter()
            if row["epoch"] % self.cfg.SOLVER.EVAL_EVERY == 0 or row["epoch"] == self.cfg.SOLVER.EPOCHS:
                row.update(self._evaluate(row["epoch"]))  # may raise RunStopped, so the totals are updated afterwards
            row.update(self.distiller.get_log_values())
            row.update(memory_figures(self.device))
            self._finish_epoch(time.perf_counter() - evaluation_start)
            distributed.run_on_main(partial(self._log_epoch, row))
            self.save()
        if self.progress.evaluated < self.progress.epoch:  # SOLVER.EPOCHS was cut to an epoch without an evaluation
            self.train_loader.set_epoch(self.progress.epoch)
            self._evaluate(self.progress.epoch)
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
            cost,
        )
        self.logger.say(run_text.final_table(summary, self.references))
        self.logger.say(run_text.final_line(summary))
        return summary

    def prepare(self) -> None:
        """Make the networks ready for `train_epoch`: gradient averaging, fast inference form, teacher cache."""
        self.step.start_parallel(self.logger.say)
        self.step.networks = FastNetworks(self.distiller, self.train_loader, self.cfg, self.precision, self.logger.say)

    def _announce(self, resumed: bool) -> None:
        loaders = self.train_loader, self.val_loader
        self.logger.say(run_text.first_line(self.cfg, *loaders, self.device, self.precision, self.folder.path))
        size = self.train_loader.info.input_size
        opening = run_text.opening_lines(self.cfg, self.distiller, self.train_loader)
        for line in [*opening, *opening_notes(self.cfg, self.distiller, self.origin, size)]:
            self.logger.say(line)
        if resumed:
            self.logger.say(run_text.resumed_line(self.progress, self.cfg.SOLVER.EPOCHS, len(self.train_loader)))
        if self.distiller.teacher is not None:
            self.teacher_accuracy, lines = evaluate_teacher(
                self.distiller, self.cfg.DISTILLER.TEACHER, self.val_loader, self.stop.check
            )
            for line in lines:
                self.logger.say(line)

    def _probe(self) -> None:
        """Train the student's classifier alone; a run that is resumed at its start does the same again."""
        loaders = self.train_loader, self.val_loader
        passes = self.cfg.SOLVER.PROBE_EPOCHS
        self.logger.say(probe_student(self.distiller.student, *loaders, self.precision, passes, self.stop.check))

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch in the distiller's memory format, with cached teacher outputs."""
        batches = map(self.in_memory_format, self.train_loader.iterate(self.progress.step))
        return self._networks.serve(batches, self.progress.step)

    @property
    def _networks(self) -> FastNetworks:
        assert self.step.networks is not None, "call prepare first"
        return self.step.networks

    def _sample(self, num_batches: int) -> Iterator[Batch]:
        return map(self.in_memory_format, self.train_loader.sample(num_batches))

    def in_memory_format(self, batch: Batch) -> Batch:
        """Return a batch whose images have the strides that the distiller expects."""
        return {**batch, "image": self.distiller.in_memory_format(batch["image"])}

    def train_epoch(self, epoch: int, batches: Optional[Iterable[Batch]] = None) -> Dict[str, Any]:
        """Train on the remaining batches of an epoch; return its row of metrics.jsonl, without accuracies.

        Args:
            epoch: the epoch, counted from 1.
            batches: the remaining batches; by default `self.batches()`.
        """
        self.distiller.train()
        self.train_loader.set_epoch(epoch)
        self._training_since = time.perf_counter() - self.progress.epoch_seconds
        num_steps, meter = len(self.train_loader), self.meter
        first_step = (epoch - 1) * num_steps
        title = f"epoch {epoch}/{self.cfg.SOLVER.EPOCHS}"
        total = sum(map(self.train_loader.images_in, range(num_steps)))
        with progress_bar(title, total, meter.images) as bar, self._networks.in_place():
            remaining = self.batches() if batches is None else batches
            for step, batch in enumerate(remaining, start=self.progress.step + 1):
                losses, logits = self.train_step(batch, epoch, first_step + step - 1, num_steps)
                meter.add(step, losses, logits, batch)
                self.progress.step = step
                if step % SYNC_STEPS == 0 or step == num_steps:
                    self._log_steps(meter.sync(), first_step)
                    self.step.check_scale(epoch, step)
                    bar.update(meter.images - bar.n)
                    bar.set_postfix(loss=f"{meter.averages()['loss']:.3f}")
                if self.save_interval.due(first_step + step):
                    self._save_within_epoch()
                self.stop.check()
        self._count_seconds()
        self._training_since = None
        return {
            "epoch": epoch,
            "lr": max(group["lr"] for group in self.step.optimizer.param_groups),
            **meter.averages(),
            "images_per_second": round(meter.images / self.progress.epoch_seconds, 1),
            "seconds": round(self.progress.epoch_seconds, 2),
        }

    def train_step(
        self, batch: Batch, epoch: int, global_step: int, steps_per_epoch: int
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Take a training step; see `TrainStep`."""
        return self.step(batch, epoch, global_step, steps_per_epoch)

    def validate(self) -> Dict[str, float]:
        """Evaluate on the validation set; return top-1 and top-5 in percent by name."""
        with keep_random_state(self.device):  # some models draw random numbers in evaluation too
            self.progress.last = self.evaluation()
        return self.progress.last

    def _evaluate(self, epoch: int) -> Dict[str, float]:
        accuracy = self.validate()
        self.progress.evaluated = epoch
        return accuracy

    def start_epoch(self, epoch: int) -> None:
        """Reset the step, the seconds and the meter of the epoch; `epoch` counts from 1. The run's totals are kept."""
        self.progress.step, self.progress.epoch_seconds = 0, 0.0
        self.state.meter = EpochMeter(epoch)

    def _count_seconds(self) -> None:
        """Update the time spent on training in this epoch. Evaluation does not count."""
        if self._training_since is not None:
            self.progress.epoch_seconds = time.perf_counter() - self._training_since

    def _finish_epoch(self, evaluation_seconds: float) -> None:
        self.progress.train_seconds += self.progress.epoch_seconds
        self.progress.total_seconds += self.progress.epoch_seconds + evaluation_seconds
        self.progress.images += self.meter.images
        self.progress.epoch += 1
        self.start_epoch(self.progress.epoch + 1)

    def _log_epoch(self, row: Dict[str, Any]) -> None:
        self.logger.epoch(row)
        self.logger.say(run_text.epoch_line(row, self.cfg.SOLVER.EPOCHS, self.progress.total_seconds))

    def _log_steps(self, fetched: Dict[int, Dict[str, float]], first_step: int) -> None:
        for step, values in fetched.items():
            if (first_step + step) % self.cfg.LOG.TENSORBOARD_FREQ == 0:
                self.logger.steps(first_step + step, values)

    def save(self) -> None:
        """Save the state after an epoch, and the student if it was evaluated."""
        evaluated = self.progress.evaluated == self.progress.epoch
        improved = evaluated and self.progress.last["deployed_top1"] > self.progress.best.get("deployed_top1", -1.0)
        if improved:
            self.progress.best = {**self.progress.last, "epoch": self.progress.epoch}
        student = self.evaluation.checkpoint(self.progress) if evaluated else None
        state = self.state.state_dict()
        keep = self.progress.epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0
        distributed.run_on_main(
            lambda: self.folder.save_epoch(student, state, self.progress.epoch, improved=improved, keep=keep)
        )
        self.save_interval.reset()

    def _save_within_epoch(self) -> None:
        fetched = self.meter.sync()
        self._count_seconds()
        distributed.run_on_main(partial(self._write_within_epoch, fetched, self.state.state_dict()))
        self.save_interval.reset()

    def _write_within_epoch(self, fetched: Dict[int, Dict[str, float]], state: Dict[str, Any]) -> None:
        self._log_steps(fetched, self.progress.epoch * len(self.train_loader))
        self.logger.flush()
        self.folder.save_state(state)


@trainer_dict.register("crd_dot")
@trainer_dict.register("dot")
class DOTTrainer(Trainer):
    """The same loop with the update rule of DOT."""

    update_rule = DistillationOriented
