"""How far a run has come."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Callable, Dict, List, Optional

MAX_COUNT = 2**53  # images or steps; larger counts come from a damaged file


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_duration(value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def _is_accuracy(value: Any) -> bool:
    """Whether `value` is a dict of accuracies; it is empty before the first evaluation."""
    if not isinstance(value, dict) or (value and "deployed_top1" not in value):
        return False
    return all(isinstance(number, (int, float)) and number >= 0 for number in value.values())


def _are_machines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(machine, dict) for machine in value)


def _is_wandb_id(value: Any) -> bool:
    return value is None or isinstance(value, str)


@dataclass
class Progress:
    """The numbers of a run that are saved with its state.

    Attributes:
        epoch: the number of completed epochs.
        step: the number of completed steps of the epoch that comes after them.
        images: the number of training images seen in the completed epochs.
        train_seconds: the training time of the completed epochs in seconds, without evaluation.
        total_seconds: the time of the completed epochs in seconds, with evaluation.
        epoch_seconds: the training time of the current epoch in seconds before the state was saved.
        best: the accuracies in percent of the evaluation with the highest top-1, and its `epoch`.
        last: the accuracies in percent of the last evaluation.
        evaluated: the epoch of the last evaluation, or 0.
        wandb_id: the ID of the Weights & Biases run.
        machines: the hardware, versions, precision and number of processes that the run was trained with, from
            `environment.machine`, in order. A run that is resumed with others has several.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: Dict[str, float] = field(default_factory=dict)
    last: Dict[str, float] = field(default_factory=dict)
    evaluated: int = 0
    wandb_id: Optional[str] = None
    machines: List[Dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> Dict[str, Any]:
        """Return the fields as plain values, for `load_state_dict`."""
        return asdict(self)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take the fields from a dict, which may hold other keys too.

        Raises:
            ValueError: a field is missing or has an impossible value.
        """
        # Earlier versions did not record the machines, and evaluated after each epoch.
        state = {"machines": [], "evaluated": state.get("epoch"), **state}
        for entry in fields(self):
            if entry.name not in state:
                raise ValueError(f"its {entry.name} is missing")
            if not VALID[entry.name](state[entry.name]):
                raise ValueError(f"its {entry.name} is {state[entry.name]!r:.60}")
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])

    def continue_on(self, machine: Dict[str, Any]) -> None:
        """Record the hardware, versions, precision and processes with which training goes on."""
        if machine not in self.machines[-1:]:
            self.machines = [*self.machines, machine]

    @property
    def images_per_second(self) -> float:
        """Training speed of the completed epochs."""
        return round(self.images / self.train_seconds, 1) if self.train_seconds else 0.0


VALID: Dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epoch", "step", "images", "evaluated"), is_count),
    **dict.fromkeys(("train_seconds", "total_seconds", "epoch_seconds"), _is_duration),
    **dict.fromkeys(("best", "last"), _is_accuracy),
    "wandb_id": _is_wandb_id,
    "machines": _are_machines,
}
