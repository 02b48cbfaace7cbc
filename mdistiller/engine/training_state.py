"""The state of a training run: all that a resumed run needs to end as if it had never been interrupted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from .. import distributed
from ..errors import UserError, one_line
from .cfg import to_dict
from .checkpoint import save
from .meter import EpochMeter
from .resume import check_same_config, schedule_changes
from .run.folder import RunFolder
from .run.origin import check_origin
from .run.progress import Progress
from .run.random_state import get_random_state, set_random_state
from .run.saved_state import check_state
from .solver.data_parallel import own_statistics
from .solver.ema import statistics_of_process
from .step import TrainStep


class TrainingState:
    """Weights, optimizer, progress and random numbers of a run, saved and restored together.

    The teacher is not saved: it is frozen and has a file of its own. The loaders' random numbers follow from seed and
    epoch.

    Args:
        step: the training step of the trainer; it holds the distiller, the optimizer and the average of the weights.
        origin: the origin of the run, as `origin_of` returns it.

    Attributes:
        progress: how far the run has come.
        meter: the losses and the accuracy of the current epoch.
    """

    def __init__(self, step: TrainStep, origin: Dict[str, Any]) -> None:
        self.distiller = step.distiller
        self.optimizer = step.optimizer
        self.scaler = step.scaler
        self.average = step.average
        self.cfg = step.cfg
        self.num_steps: Optional[int] = None if step.train_loader is None else len(step.train_loader)
        self.origin = origin
        self.device = next(step.distiller.parameters()).device
        self.precision = str(step.precision)
        self.progress = Progress()
        self.meter = EpochMeter(1)

    def state_dict(self) -> Dict[str, Any]:
        """Return the state between two steps as tensors and plain values. All processes of a group call it together."""
        weights = {key: value for key, value in self.distiller.state_dict().items() if not key.startswith("teacher.")}
        statistics = {key: value.cpu() for key, value in own_statistics(self.distiller).items()}
        return {
            "distiller": weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state_dict(),
            **self.progress.state_dict(),
            "origin": self.origin,
            "random": distributed.all_gather(get_random_state(self.device)),
            "statistics": distributed.all_gather(statistics),
            "num_steps": self.num_steps,
            "precision": self.precision,
            "config": to_dict(self.cfg),
            **({} if self.average is None else {"ema": self.average.state_dict()}),
        }

    def restore(self, state: Dict[str, Any], folder: RunFolder) -> List[str]:
        """Continue from what `state_dict` returned. All processes of a group call it together.

        Args:
            state: the content of a training state in `folder`.
            folder: the folder of the run. If length or decay stages changed, the state there is saved again with the
                new ones.

        Returns:
            Notes for the user on another precision, a changed length or changed decay stages.

        Raises:
            UserError: the state is invalid, or belongs to other settings, other data or another teacher.
        """
        with _reporting_invalid_state(folder, folder.remedy()):
            check_state(state)
        self._check_same_run(state, str(folder.latest))
        with _reporting_invalid_state(folder, folder.remedy()):
            self.progress.load_state_dict(state)
            self.meter = EpochMeter(self.progress.epoch + 1)
            self.meter.load_state_dict(state["meter"], self.device)
            if self.num_steps is not None and self.progress.step > self.num_steps:
                raise ValueError(f"its step is {self.progress.step}, an epoch has {self.num_steps}")
        with _reporting_invalid_state(folder, "give the configuration that the run was started with"):
            self._load_weights(state)
            self._load_optimizer(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state.get("ema", {}))
            self._load_random_state(state["random"])
            try:
                self.scaler.load_state_dict(state["scaler"])
            except (KeyError, TypeError, RuntimeError) as error:
                raise ValueError(f"its scaler cannot be used ({one_line(error)})") from None
        return [*self._precision_notes(state), *self._schedule_notes(state, folder)]

    def _load_random_state(self, saved_by: List[Dict[str, Any]]) -> None:
        rank = distributed.get_rank()
        if rank < len(saved_by):  # a process that did not exist then keeps the numbers of its seed
            try:
                set_random_state(saved_by[rank], self.device)
            except (LookupError, TypeError, RuntimeError, OverflowError) as error:
                raise ValueError(f"its random state cannot be used ({one_line(error)})") from None

    def _check_same_run(self, state: Dict[str, Any], path: str) -> None:
        saved, given = state["config"], to_dict(self.cfg)
        # Other images often have another mean and std. The difference in the images is the one to report.
        check_same_config(saved, given, path, leave_out=["DATASET.MEAN", "DATASET.STD"])
        check_origin(state["origin"], self.origin, path)
        check_same_config(saved, given, path)
        if state["num_steps"] != self.num_steps:
            raise UserError(
                f"--resume: {path} has {state['num_steps']} steps per epoch, but a world size of"
                f" {distributed.get_world_size()} gives {self.num_steps}, because a short last batch is dropped; resume"
                f" with the world size that it was saved with, {len(state['random'])}"
            )

    def _load_weights(self, state: Dict[str, Any]) -> None:
        try:
            missing, unexpected = self.distiller.load_state_dict(state["distiller"], strict=False)
            self.distiller.load_state_dict(statistics_of_process(state["statistics"]), strict=False)
        except RuntimeError as error:  # shapes differ, for example after an edit of a plug-in
            raise ValueError(one_line(error)) from None
        differing = [key for key in missing if not key.startswith("teacher.")] + unexpected
        if differing:
            raise ValueError(f"its weights differ, first {differing[0]}")

    def _load_optimizer(self, saved: Dict[str, Any]) -> None:
        """Load momenta, counters and learning rates; the options follow from the configuration, which is the same.

        The counters are values of a group that a new optimizer lacks, such as LAMB's number of steps. The rate is
        logged after the last step of an epoch, which may be done already.
        """
        own, groups = self.optimizer.state_dict()["param_groups"], saved["param_groups"]
        if [group["params"] for group in groups] != [group["params"] for group in own]:
            raise ValueError("its optimizer has other parameters, as of another SOLVER.TRAINER")
        merged = [{**theirs, **mine, "lr": theirs["lr"]} for mine, theirs in zip(own, groups)]
        self.optimizer.load_state_dict({**saved, "param_groups": merged})

    def _precision_notes(self, state: Dict[str, Any]) -> List[str]:
        before = state.get("precision", self.precision)
        if before == self.precision:
            return []
        return [
            f"note: the run was trained in {before} and continues in {self.precision}, which SOLVER.AMP auto chooses on"
            " this machine"
        ]

    def _schedule_notes(self, state: Dict[str, Any], folder: RunFolder) -> List[str]:
        if self.num_steps is None:
            return []
        progress, path = self.progress, folder.latest
        notes = schedule_changes(self.cfg, state["config"], progress.epoch, progress.step, self.num_steps, str(path))
        if notes:  # otherwise a run that is killed before its next save would go back to the old schedule
            changed = {**state, "config": to_dict(self.cfg)}
            distributed.run_on_main(lambda: save(changed, path, folder.previous))
        return notes


@contextmanager
def _reporting_invalid_state(folder: RunFolder, remedy: str) -> Iterator[None]:
    """Turn the ValueError of a check into a UserError that names the file and the remedy."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"--resume: {folder.latest} is not a valid training state of this configuration: {error}; {remedy}"
        ) from None
