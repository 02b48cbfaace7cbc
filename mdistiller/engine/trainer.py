"""The training loop: epochs, evaluation, checkpoints, and the numbers of each."""

from __future__ import annotations

import random
import time
from typing import Any, Dict, Tuple, Type

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..distillers import DeployedStudent, Distiller
from ..errors import UserError
from ..registry import Registry
from . import checkpoint
from .cfg import dump, to_dict
from .check import check_resumable
from .evaluate import evaluate
from .logger import RunLogger
from .meter import EpochMeter, NonFiniteLoss
from .optim import learning_rate
from .post_mortem import keep_evidence
from .precision import pick_precision
from .report import epoch_line, final_line, final_table, read_references
from .run_folder import RunFolder
from .update_rules import DistillationOriented, SummedLosses, UpdateRule, loss_names

SYNC_STEPS = 50  # between two looks of the host at the device's numbers

trainer_dict: Registry[Type[Trainer]] = Registry("trainer")


@trainer_dict.register("crd")  # upstream's name for a loader with contrast samples, which CRD draws itself here
@trainer_dict.register("base")
class Trainer:
    """Trains a distiller; the same loop serves every method.

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
        self.references = read_references(cfg.EXPERIMENT.REFERENCE)
        self.device = next(distiller.parameters()).device
        self.precision = pick_precision(cfg.SOLVER.AMP, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self.update = self.update_rule(cfg, distiller.get_learnable_parameters(), self.scaler)
        self.optimizer = self.update.optimizer
        self.epoch = 0  # epochs done
        self.teacher: Dict[str, float] = {}  # accuracies in percent, as are best and last
        self.best: Dict[str, float] = {}
        self.last: Dict[str, float] = {}
        self.train_seconds = 0.0
        self.total_seconds = 0.0
        self.images = 0

    def train(self, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
        """Run the epochs that are left; return the summary that is also written to summary.json."""
        self.folder.check(resume, overwrite)
        if resume:
            self._load_state(checkpoint.read_checkpoint(self.folder.latest))
        self._check_losses()
        self.folder.create(resume)
        self.folder.config.write_text(dump(self.cfg), encoding="utf-8")
        logger = RunLogger(self.folder, self.cfg, self.epoch)
        try:
            summary = self._run(logger, resume)
        except BaseException as error:
            logger.abort(error)
            raise
        logger.close(summary)
        return summary

    def _run(self, logger: RunLogger, resume: bool) -> Dict[str, Any]:
        self._announce(logger, resume)
        while self.epoch < self.cfg.SOLVER.EPOCHS:
            started = time.perf_counter()
            try:
                row = self._train_epoch(self.epoch + 1, logger)
            except NonFiniteLoss as error:
                raise keep_evidence(error, self._state(), self.folder.nonfinite) from None
            row.update(self._validate())
            self.epoch += 1
            self.total_seconds += time.perf_counter() - started
            logger.epoch(row)
            logger.say(epoch_line(row, self.cfg.SOLVER.EPOCHS, self.total_seconds))
            self._save()
        summary = self._summary()
        for text in (final_table(summary, self.references), final_line(summary)):
            logger.say(text)
        return summary

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
        info = self.train_loader.info
        logger.say(
            f"{self.cfg.DISTILLER.TYPE}: student {self.cfg.DISTILLER.STUDENT}, {info.name}"
            f" ({self.train_loader.num_images} training and {self.val_loader.num_images} validation images,"
            f" {info.num_classes} classes, {info.input_size} px), {self.device}, {self.precision},"
            f" output {self.folder.path}"
        )
        if self.distiller.teacher is not None:
            teacher = self.distiller.teacher
            self.teacher = evaluate(lambda image: {"deployed": teacher(image)[0]}, self.val_loader)
            logger.say(f"teacher {self.cfg.DISTILLER.TEACHER}: top-1 {self.teacher['deployed_top1']:.2f}")
        if self.distiller.tests_otherwise:
            logger.say(
                f"note: {self.cfg.DISTILLER.TYPE} tests by a forward_test of its own; the saved student is the bare"
                " one, whose accuracy is `bare` in metrics.jsonl (a method ships more by setting self.head)"
            )
        if resume:
            logger.say(f"resumed after epoch {self.epoch} of {self.cfg.SOLVER.EPOCHS}")

    def _train_epoch(self, epoch: int, logger: RunLogger) -> Dict[str, Any]:
        self.distiller.train()
        self.train_loader.set_epoch(epoch)
        meter = EpochMeter(epoch)
        steps = len(self.train_loader)
        first_step = (epoch - 1) * steps
        started = time.perf_counter()
        title = f"epoch {epoch}/{self.cfg.SOLVER.EPOCHS}"
        # disable=None: no bar where stderr is a file, the line per epoch says the same
        with tqdm(total=self.train_loader.num_images, desc=title, unit="img", leave=False, disable=None) as bar:
            for step, batch in enumerate(self.train_loader, start=1):
                losses, logits = self._step(batch, epoch, first_step + step - 1, steps)
                meter.add(step, losses, logits, batch)
                if step % SYNC_STEPS == 0 or step == steps:
                    self._log_steps(meter.sync(), first_step, logger)
                    bar.update(meter.images - bar.n)
                    bar.set_postfix(loss=f"{meter.averages()['loss']:.3f}")
        seconds = time.perf_counter() - started
        self.train_seconds += seconds
        self.images += meter.images
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
        if not self.distiller.channels_last:
            batch = {**batch, "image": batch["image"].contiguous()}
        with self.precision.autocast():
            logits, losses = self.distiller(**batch, epoch=epoch)
        # scalars, but for files written for MDistiller, which averages too
        losses = {name: loss.mean() if loss.ndim else loss for name, loss in losses.items()}
        self.update(losses)
        return losses, logits

    def _log_steps(self, fetched: Dict[int, Dict[str, float]], first_step: int, logger: RunLogger) -> None:
        for step, values in fetched.items():
            if (first_step + step) % self.cfg.LOG.TENSORBOARD_FREQ == 0:
                logger.steps(first_step + step, values)

    def _validate(self) -> Dict[str, float]:
        self.distiller.eval()
        self.last = evaluate(self.distiller.forward_eval, self.val_loader)
        return self.last

    def _save(self) -> None:
        improved = self.last["deployed_top1"] > self.best.get("deployed_top1", -1.0)
        if improved:
            self.best = {**self.last, "epoch": self.epoch}
        accuracy = self.last
        if self.distiller.tests_otherwise:
            accuracy = {f"deployed_top{k}": self.last[f"bare_top{k}"] for k in (1, 5)}
        student = checkpoint.describe_student(
            DeployedStudent(self.distiller.student, self.distiller.head),
            self.cfg.DISTILLER.STUDENT,
            self.train_loader.info,
            accuracy,
            self.epoch,
            to_dict(self.cfg),
        )
        state = self._state()
        checkpoint.save(student, self.folder.student_latest)
        if improved:
            checkpoint.save(student, self.folder.student_best)
            checkpoint.save(state, self.folder.best)
        if self.epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
            checkpoint.save(state, self.folder.kept(self.epoch))
        checkpoint.save(state, self.folder.latest)

    def _state(self) -> Dict[str, Any]:
        """Everything that a resumed run needs; not the teacher, which is frozen and has its own file."""
        weights = {k: v for k, v in self.distiller.state_dict().items() if not k.startswith("teacher.")}
        numpy_state = np.random.get_state(legacy=False)
        numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
        return {
            "distiller": weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "last": self.last,
            "train_seconds": self.train_seconds,
            "total_seconds": self.total_seconds,
            "images": self.images,
            "random": {
                "python": random.getstate(),
                "numpy": numpy_state,
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            "config": to_dict(self.cfg),
        }

    def _load_state(self, state: Dict[str, Any]) -> None:
        check_resumable(state.get("config"), to_dict(self.cfg), str(self.folder.latest))
        try:
            missing, unexpected = self.distiller.load_state_dict(state["distiller"], strict=False)
            missing = [key for key in missing if not key.startswith("teacher.")]
            if missing or unexpected:
                raise ValueError(f"weights differ, first {(missing + unexpected)[0]}")
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            for name in ("epoch", "best", "last", "train_seconds", "total_seconds", "images"):
                setattr(self, name, state[name])
            numpy_state = state["random"]["numpy"]
            numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
            np.random.set_state(numpy_state)
            random.setstate(state["random"]["python"])
            torch.set_rng_state(state["random"]["torch"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--resume: {self.folder.latest} is not a state of this configuration ({type(error).__name__}:"
                f" {reason}); give the configuration that the run was started with"
            ) from None

    def _summary(self) -> Dict[str, Any]:
        """What summary.json holds; accuracies in percent."""
        cfg = self.cfg
        return {
            "name": self.name,
            "method": cfg.DISTILLER.TYPE,
            "student": cfg.DISTILLER.STUDENT,
            "teacher": cfg.DISTILLER.TEACHER if self.distiller.teacher is not None else None,
            "dataset": cfg.DATASET.TYPE,
            "num_classes": self.train_loader.info.num_classes,
            "train_images": self.train_loader.num_images,
            "val_images": self.val_loader.num_images,
            "epochs": self.epoch,
            "batch_size": cfg.SOLVER.BATCH_SIZE,
            "seed": cfg.EXPERIMENT.SEED,
            "last": self.last,
            "best": self.best,
            "teacher_accuracy": self.teacher,
            "images_per_second": round(self.images / self.train_seconds, 1) if self.train_seconds else 0.0,
            "seconds": round(self.total_seconds, 1),
            "device": str(self.device),
            "precision": str(self.precision),
            "torch": torch.__version__,
        }


@trainer_dict.register("crd_dot")
@trainer_dict.register("dot")
class DOTTrainer(Trainer):
    """The same loop with the update rule of DOT."""

    update_rule = DistillationOriented
