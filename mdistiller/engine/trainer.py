"""The training loop: epochs, evaluation, checkpoints, and the numbers of each."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import Any, Dict, Iterator, Optional, Tuple, Type

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import distributed
from ..atomic_files import replace_text
from ..dataset import Batch
from ..distillers import Distiller
from ..registry import Registry
from . import checkpoint
from .cfg import dump
from .data_parallel import average_statistics, in_parallel
from .evaluate import evaluate
from .meter import EpochMeter, NonFiniteLoss
from .optim import learning_rate
from .run import origin, state
from .run.folder import RunFolder
from .run.logger import RunLogger, SilentLogger
from .run.nonfinite import keep_evidence
from .run.report import epoch_line, final_line, final_table, opening_lines, read_references, summary_of
from .run.save_interval import SaveSchedule
from .run.signals import RunStopped, StopSignals
from .speed.fast_networks import FastNetworks
from .speed.memory import memory_figures
from .speed.precision import pick_precision
from .update_rules import DistillationOriented, SummedLosses, UpdateRule, loss_names

SYNC_STEPS = 50  # between two looks of the host at the device's numbers

trainer_dict: Registry[Type[Trainer]] = Registry("trainer")


@trainer_dict.register("crd")  # upstream's name for a loader with contrast samples, which CRD draws itself here
@trainer_dict.register("base")
class Trainer:
    """Trains a distiller; the same loop serves every method.

    Several processes run it together: each with its share of every batch, files by the first of them.

    Args:
        experiment_name: the run's folder below `LOG.PREFIX`.
        distiller: on the device of the loaders' batches.
        train_loader, val_loader: what `get_dataset` returned.
        cfg: the resolved configuration.

    Attributes:
        update_rule: how a step's losses change the parameters.
    """

    update_rule: Type[UpdateRule] = SummedLosses

    def __init__(
        self, experiment_name: str, distiller: Distiller, train_loader: Any, val_loader: Any, cfg: Any
    ) -> None:
        self.name = experiment_name
        self.folder = RunFolder(cfg.LOG.PREFIX, experiment_name)
        self.distiller = distiller.to(memory_format=torch.channels_last) if distiller.channels_last else distiller
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.cfg = cfg
        measured = train_loader is None or val_loader is None  # by a benchmark: never saved, hence never resumed
        self.origin = {} if measured else distributed.run_on_main(partial(origin.origin_of, self))
        self.references = read_references(cfg.EXPERIMENT.REFERENCE)
        self.device = next(distiller.parameters()).device
        self.precision = pick_precision(cfg.SOLVER.AMP, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self.update = self.update_rule(cfg, distiller.get_learnable_parameters(), self.scaler)
        self.optimizer = self.update.optimizer
        self.stop = StopSignals()
        self.schedule = SaveSchedule(cfg.SOLVER.CHECKPOINT_EVERY)
        self.epoch = 0  # epochs done
        self.step = 0  # steps done of the next
        self.meter = EpochMeter(1)  # of these
        self.epoch_seconds = 0.0  # spent on it before this process
        self.started = time.perf_counter()
        self.teacher: Dict[str, float] = {}  # accuracies in percent, as are best and last
        self.best: Dict[str, float] = {}
        self.last: Dict[str, float] = {}
        self.train_seconds = 0.0
        self.total_seconds = 0.0
        self.images = 0
        self.wandb_id: Optional[str] = None
        self.parallel: Optional[nn.Module] = None  # of several processes, what averages their gradients

    def train(self, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
        """Run the epochs that are left; return the summary that is also written to summary.json.

        Raises:
            UserError: the folder is another run's, cannot be written to, or has nothing to resume from.
            RunStopped: SIGINT or SIGTERM came, and the state is saved.
        """
        self._check_losses()
        notes = [f"note: nothing was saved in {self.folder.path} yet; starting from the beginning"] if resume else []
        resume, overwrite = distributed.run_on_main(lambda: self.folder.checked(resume, overwrite))
        with ExitStack() as claim:
            distributed.run_on_main(lambda: claim.enter_context(self.folder.claimed(resume, overwrite)))
            if resume:
                notes = state.restore(self, distributed.run_on_main(lambda: state.read_latest(self.folder)))
            logger: RunLogger = SilentLogger()

            def start() -> None:
                nonlocal logger
                self.folder.create(resume)
                replace_text(self.folder.config, dump(self.cfg))
                steps_done = self.epoch * len(self.train_loader) + self.step
                logger = RunLogger(self.folder, self.cfg, self.epoch, steps_done, self.wandb_id)

            distributed.run_on_main(start)
            for note in notes:
                logger.say(note)
            self.wandb_id = logger.wandb_id
            try:
                with self.stop:
                    summary = self._run_or_save(logger, resume)
            except BaseException as error:
                logger.abort(error)
                if isinstance(error, RunStopped):
                    distributed.synchronize()  # the first one to end has its launcher end the others
                raise
            logger.close(summary)
        return summary

    def _run_or_save(self, logger: RunLogger, resume: bool) -> Dict[str, Any]:
        try:
            try:
                return self._run(logger, resume)
            except RunStopped as stopped:
                self._save_state(logger)
                where = f"epoch {self.epoch + 1}, step {self.step} of {len(self.train_loader)}"
                logger.say(f"{stopped} at {where}; saved, continue with --resume")
                raise
        except NonFiniteLoss as error:  # met wherever the losses are looked at
            raise keep_evidence(error, state.capture(self), self.folder.nonfinite) from None

    def _run(self, logger: RunLogger, resume: bool) -> Dict[str, Any]:
        self.started = time.perf_counter() - self.epoch_seconds
        self._announce(logger, resume)
        self.start_parallel()
        form = FastNetworks(self.distiller, self.train_loader, self.cfg, self.precision, logger.say)
        while self.epoch < self.cfg.SOLVER.EPOCHS:
            self.started = time.perf_counter() - self.epoch_seconds
            self.stop.check()
            row = self._train_epoch(self.epoch + 1, logger, form)
            train_seconds = time.perf_counter() - self.started
            row.update(self._validate())  # from which a signal may lead out: nothing is added up before it
            row.update(memory_figures(self.device))
            self.train_seconds += train_seconds
            self.images += self.meter.images
            self.epoch, self.step, self.epoch_seconds = self.epoch + 1, 0, 0.0
            self.meter = EpochMeter(self.epoch + 1)
            self.total_seconds += time.perf_counter() - self.started
            distributed.run_on_main(partial(self._tell, logger, row))
            self._save()
        summary = summary_of(self)
        for text in (final_table(summary, self.references), final_line(summary)):
            logger.say(text)
        return summary

    def start_parallel(self) -> None:
        """Have steps average their gradients over the processes, from the weights of the first of them on."""
        self.distiller.train()
        if distributed.get_world_size() > 1:
            self.parallel = in_parallel(self.distiller, self.cfg.SOLVER.SYNC_BN)

    def _tell(self, logger: RunLogger, row: Dict[str, Any]) -> None:
        logger.epoch(row)
        logger.say(epoch_line(row, self.cfg.SOLVER.EPOCHS, self.total_seconds))

    def _check_losses(self) -> None:
        """Refuse losses that the update rule has no use for, before anything is written."""
        if type(self.update).check is not UpdateRule.check:
            size = self.train_loader.info.input_size
            image, label = torch.zeros(2, 3, size, size, device=self.device), torch.zeros(2, device=self.device).long()
            with self.precision.autocast():
                names = loss_names(self.distiller, image=image, target=label, index=label, epoch=self.epoch + 1)
            if names is not None:
                self.update.check(names)

    def _announce(self, logger: RunLogger, resume: bool) -> None:
        for line in opening_lines(self, resume):
            logger.say(line)
        if self.distiller.teacher is not None:
            teacher = self.distiller.teacher
            self.teacher = evaluate(lambda image: {"deployed": teacher(image)[0]}, self.val_loader, self.stop.check)
            logger.say(f"teacher {self.cfg.DISTILLER.TEACHER}: top-1 {self.teacher['deployed_top1']:.2f}")

    def batches(self, form: FastNetworks) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch, as the distiller takes them, ready for its teacher's cache."""
        return form.serve(map(self.as_taken, self.train_loader.iterate(self.step)), self.step)

    def as_taken(self, batch: Batch) -> Batch:
        """Return a batch with the strides that the distiller wants."""
        return batch if self.distiller.channels_last else {**batch, "image": batch["image"].contiguous()}

    def _train_epoch(self, epoch: int, logger: RunLogger, form: FastNetworks) -> Dict[str, Any]:
        self.distiller.train()
        self.train_loader.set_epoch(epoch)
        meter = self.meter
        steps, total = len(self.train_loader), self.train_loader.num_images
        first_step = (epoch - 1) * steps
        title = f"epoch {epoch}/{self.cfg.SOLVER.EPOCHS}"
        # disable=None: no bar where stderr is a file, the line per epoch says the same
        quiet = None if distributed.is_main_process() else True
        bar = tqdm(total=total, initial=meter.images, desc=title, unit="img", leave=False, disable=quiet)
        with bar, form.in_place():
            for step, batch in enumerate(self.batches(form), start=self.step + 1):
                losses, logits = self._step(batch, epoch, first_step + step - 1, steps)
                meter.add(step, losses, logits, batch)
                self.step = step
                if step % SYNC_STEPS == 0 or step == steps:
                    self._log_steps(meter.sync(), first_step, logger)
                    bar.update(meter.images - bar.n)
                    bar.set_postfix(loss=f"{meter.averages()['loss']:.3f}")
                if self.schedule.due(first_step + step):
                    self._save_state(logger)
                self.stop.check()
        seconds = time.perf_counter() - self.started
        return {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            **meter.averages(),
            "images_per_second": round(meter.images / seconds, 1),
            "seconds": round(seconds, 2),
        }

    def _step(
        self, batch: Dict[str, Tensor], epoch: int, global_step: int, steps_per_epoch: int
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.cfg, global_step, steps_per_epoch)
        with self.precision.autocast():
            logits, losses = (self.parallel or self.distiller)(**batch, epoch=epoch)
        # scalars, except from files written for MDistiller, which averages too
        losses = {name: loss.mean() if loss.ndim else loss for name, loss in losses.items()}
        self.update(self._weighted(losses, len(logits), global_step % steps_per_epoch))
        return losses, logits

    def _weighted(self, losses: Dict[str, Tensor], images: int, step: int) -> Dict[str, Tensor]:
        """Return means over a process's images such that their average over the processes is that over all images."""
        if distributed.get_world_size() == 1:
            return losses
        weight = images * distributed.get_world_size() / self.train_loader.images_in(step)
        return {name: weight * loss for name, loss in losses.items()}

    def _log_steps(self, fetched: Dict[int, Dict[str, float]], first_step: int, logger: RunLogger) -> None:
        for step, values in fetched.items():
            if (first_step + step) % self.cfg.LOG.TENSORBOARD_FREQ == 0:
                logger.steps(first_step + step, values)

    def _validate(self) -> Dict[str, float]:
        average_statistics(self.distiller)
        self.distiller.eval()
        self.last = evaluate(self.distiller.forward_eval, self.val_loader, self.stop.check)
        return self.last

    def _save(self) -> None:
        """Save the state between two epochs, and the student."""
        improved = self.last["deployed_top1"] > self.best.get("deployed_top1", -1.0)
        if improved:
            self.best = {**self.last, "epoch": self.epoch}
        student, content = state.deployed(self), state.capture(self)

        def write() -> None:
            checkpoint.save(student, self.folder.student_latest)
            if improved:
                checkpoint.save(student, self.folder.student_best)
                checkpoint.save(content, self.folder.best)
            if self.epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
                checkpoint.save(content, self.folder.kept(self.epoch))
            checkpoint.save(content, self.folder.latest, self.folder.previous)

        distributed.run_on_main(write)
        self.schedule.saved()

    def _save_state(self, logger: RunLogger) -> None:
        """Save the state within an epoch."""
        fetched = self.meter.sync()
        self.epoch_seconds = time.perf_counter() - self.started
        content = state.capture(self)

        def write() -> None:
            self._log_steps(fetched, self.epoch * len(self.train_loader), logger)
            logger.flush()
            checkpoint.save(content, self.folder.latest, self.folder.previous)

        distributed.run_on_main(write)
        self.schedule.saved()


@trainer_dict.register("crd_dot")
@trainer_dict.register("dot")
class DOTTrainer(Trainer):
    """The same loop with the update rule of DOT."""

    update_rule = DistillationOriented
