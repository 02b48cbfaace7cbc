"""What is computed from the outputs of networks.

Shapes: `n` images, `K` classes, `m` feature vectors, `C` their length.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 15


class Agreement(NamedTuple):
    """How far two classifiers decide alike; fractions of the images.

    Attributes:
        same: the fraction for which both name the same class.
        both, only_teacher, only_student, neither: the fractions for which both, only one or none of the two is right.
        divergence: mean of KL(teacher ‖ student), in nats.
    """

    same: float
    both: float
    only_teacher: float
    only_student: float
    neither: float
    divergence: float


def agreement(student: Tensor, teacher: Tensor, target: Tensor) -> Agreement:
    """Compare the logits `[n, K]` of a student and a teacher; `target` holds the labels, int64 `[n]`."""
    guess, taught = student.argmax(1), teacher.argmax(1)
    right, teacher_right = guess == target, taught == target
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
    return Agreement(
        same=_share(guess == taught),
        both=_share(right & teacher_right),
        only_teacher=_share(teacher_right & ~right),
        only_student=_share(right & ~teacher_right),
        neither=_share(~(right | teacher_right)),
        divergence=divergence.item(),
    )


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()


class Reliability(NamedTuple):
    """Confidence, the largest probability, against accuracy in `NUM_BINS` bins of equal width.

    Attributes:
        counts: the number of images in each bin.
        accuracy, confidence: the means in each bin; NaN where it is empty.
        ece: expected calibration error, from 0 to 1.
        mean_accuracy, mean_confidence: the means over all images.
        nll: mean negative log-likelihood, in nats.
    """

    counts: List[int]
    accuracy: List[float]
    confidence: List[float]
    ece: float
    mean_accuracy: float
    mean_confidence: float
    nll: float


def reliability(logits: Tensor, target: Tensor) -> Reliability:
    """Return the calibration of logits `[n, K]` for labels int64 `[n]`.

    Source: "On Calibration of Modern Neural Networks" (2017), equation 3.
    """
    confidence, guess = logits.double().softmax(1).max(1)
    right = (guess == target).double()
    bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1  # ((i − 1) / 15, i / 15]
    counts = torch.bincount(bins, minlength=NUM_BINS).double()
    accuracy = torch.zeros(NUM_BINS).double().index_add_(0, bins, right) / counts
    mean = torch.zeros(NUM_BINS).double().index_add_(0, bins, confidence) / counts
    gaps = (accuracy - mean).abs().nan_to_num() * counts / len(target)
    return Reliability(
        counts.long().tolist(),
        accuracy.tolist(),
        mean.tolist(),
        gaps.sum().item(),
        right.mean().item(),
        confidence.mean().item(),
        F.cross_entropy(logits, target).item(),
    )


def class_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the top-1 of each class, `[K]` from 0 to 1, of logits `[n, K]`; NaN for a class without images."""
    num_classes = logits.shape[1]
    right = (logits.argmax(1) == target).double()
    total = torch.bincount(target, minlength=num_classes)
    return torch.bincount(target, weights=right, minlength=num_classes) / total


def paired_difference(right: Tensor, reference: Tensor) -> Tuple[float, float]:
    """Return the difference of two accuracies on the same images, and half the width of its 95 % interval.

    The interval is the normal one for paired proportions: it covers the choice of the images, not that of the seed.

    Args:
        right, reference: which images each classifier gets right, bool `[n]`.
    """
    change = right.double() - reference.double()
    spread = change.var(unbiased=False).sqrt() if len(change) else torch.zeros(())
    return change.mean().item(), (1.96 * spread / max(1, len(change)) ** 0.5).item()


class Axes(NamedTuple):
    """The first two principal axes of features: `mean [C]`, `axes [C, 2]`."""

    mean: Tensor
    axes: Tensor

    def project(self, features: Tensor) -> Tensor:
        """Return the coordinates `[m, 2]` of features `[m, C]`."""
        return (features - self.mean) @ self.axes


def principal_axes(features: Tensor) -> Axes:
    """Return the principal axes of `features [m, C]`, `m ≥ 1`. The largest entry of an axis is positive."""
    mean = features.mean(0)
    directions = torch.linalg.svd(features - mean, full_matrices=False).Vh[:2]
    strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    axes = (directions * torch.where(strongest < 0, -1.0, 1.0)).T
    return Axes(mean, F.pad(axes, (0, 2 - axes.shape[1])))  # a single image or channel has one axis


def radial_profile(energy: Tensor) -> Tensor:
    """Return the mean of a spectrum `[H, W]`, zero frequency first, over rings of whole distance in bins."""
    rows, columns = (torch.fft.fftfreq(size, 1 / size) for size in energy.shape)
    ring = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt().round().long().flatten()
    sums = torch.zeros(int(ring.max()) + 1, dtype=energy.dtype).index_add_(0, ring, energy.flatten())
    return sums / torch.bincount(ring)
