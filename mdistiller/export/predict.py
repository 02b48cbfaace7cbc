"""Classify pictures with a checkpoint or an export."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from ..dataset.folders.class_folders import images_below
from ..dataset.images.file_names import picture_suffixes
from ..dataset.loading.image_check import SplitReport
from ..dataset.loading.in_memory import decode_chunks
from ..dataset.loading.splits import FileSplit
from ..errors import UserError
from ..paths import user_path
from .runner import Runner

BATCH = 64
NUM_THREADS = 4  # that decode images


@dataclass(frozen=True)
class Guess:
    """A class with its probability.

    Attributes:
        name: the name of the class.
        index: the index of the class among the logits.
        probability: the probability by softmax, from 0 to 1.
    """

    name: str
    index: int
    probability: float


Predictions = Dict[Path, List[Guess]]


def find_pictures(paths: Sequence[str | os.PathLike[str]]) -> Tuple[List[Path], List[str]]:
    """Return the pictures that `paths` name, and a line for each path without any.

    A folder stands for the pictures at any depth below it, in the order of their names.
    """
    files: List[Path] = []
    faults: List[str] = []
    for given in paths:
        try:
            path = user_path(given)
            if not path.exists():
                faults.append(f"{path} does not exist; give files or folders of images")
                continue
            if not path.is_dir():
                files.append(path)
                continue
            below = images_below(path, picture_suffixes(), Counter())
            files += map(Path, below)
            if not below:
                faults.append(f"the folder {path} holds no image; give files or folders of images")
        except UserError as error:
            faults += error.faults
    return files, faults


def predict(runner: Runner, files: Sequence[Path], k: int = 5) -> Tuple[Predictions, List[str]]:
    """Return the `k` likeliest classes of each picture, and a line for each picture that cannot be read.

    Pictures are prepared as in validation.

    Args:
        runner: the student, ready to run.
        files: the files of the pictures.
        k: the number of classes to return; at most all classes are returned.
    """
    split, findings = FileSplit(list(files), [0] * len(files)), SplitReport()
    logits = []
    for chunk in decode_chunks(split, runner.view, range(len(files)), NUM_THREADS, findings):
        logits += [runner.run(pixels) for pixels in torch.from_numpy(chunk).split(BATCH)]
    unusable = [fault for _, fault in sorted(findings.unusable.items())]
    faults = [f"cannot read the image {fault}; replace, convert or remove it" for fault in unusable]
    if not logits:
        return {}, faults
    read = [file for index, file in enumerate(files) if index not in findings.unusable]
    return dict(zip(read, likeliest(torch.cat(logits), runner.classes, k))), faults


def likeliest(logits: Tensor, classes: Sequence[str], k: int) -> List[List[Guess]]:
    """Return the `k` likeliest classes for each row of `logits` `[B, K]`; at most all `K`."""
    top = logits.float().softmax(1).topk(min(k, len(classes)))
    return [
        [Guess(classes[index], index, p) for p, index in zip(probabilities, indices)]
        for probabilities, indices in zip(top.values.tolist(), top.indices.tolist())
    ]


def as_text(predictions: Predictions) -> str:
    """Return one line for each picture."""
    return "".join(
        f"{file}: {', '.join(f'{guess.name} {100 * guess.probability:.1f} %' for guess in guesses)}\n"
        for file, guesses in predictions.items()
    )


def as_json(predictions: Predictions) -> str:
    """Return a list of objects with the keys `image` and `predictions`."""
    content = [
        {"image": str(file), "predictions": [asdict(guess) for guess in guesses]}
        for file, guesses in predictions.items()
    ]
    return json.dumps(content, indent=1) + "\n"


def as_csv(predictions: Predictions) -> str:
    """Return a table with the columns `image`, `rank`, `class`, `index`, `probability`."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "index", "probability"])
    for file, guesses in predictions.items():
        for rank, guess in enumerate(guesses, 1):
            writer.writerow([file, rank, guess.name, guess.index, f"{guess.probability:.6f}"])
    return table.getvalue()
