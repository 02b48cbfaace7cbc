"""A linear probe: the student's classifier is trained alone, on features that are computed once.

Fine-tuning a pretrained network under a new, random classifier sends large gradients through it at first, which damage
what it has learned. Under the classifier of a probe they are small. See `SOLVER.PROBE_EPOCHS`.

Source: "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (2022), LP-FT.

Shapes: `M` training images, `C` channels of the pooled feature, `N` classes.
"""

from __future__ import annotations

import time
from typing import Any, Callable, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import distributed
from ...dataset import Loader
from ...errors import UserError
from ...models._adapt import evaluation_mode
from ..speed.memory import available_memory, gib
from ..speed.precision import Precision

# Weight decay of the probe, for features scaled to deviation 1. (EfficientNet-Lite0 pretrained on ImageNet, 100 classes
# of 32 px images enlarged to 96 px, top-1 for 0.01, 0.03 and 0.1: with 5,000 images 40.6, 41.9 and 42.4 %, with 10,000
# images 45.0, 46.1 and 45.8 %.)
DECAY = 0.03
COPIES = 3  # held in memory: features as parts, joined and scaled; logits, probabilities and their gradient


def check_probe(student: Any, num_images: int, device: torch.device) -> None:
    """Raise a UserError if a student has no classifier to train, or the features would not fit in memory.

    Args:
        student: the student.
        num_images: the number of training images, `M`.
        device: the device of the training, where the classifier is fitted.
    """
    try:
        classifier: nn.Linear = student.get_classifier()
    except UserError as error:
        raise UserError(f"SOLVER.PROBE_EPOCHS trains the classifier of the student: {error}; or set it to 0") from None
    if not {name for name, _ in classifier.named_parameters()} <= {"weight", "bias"}:
        raise UserError(
            "SOLVER.PROBE_EPOCHS needs a plain nn.Linear as the classifier of the student, and this one is parametrized"
            " (weight norm, for example); set it to 0"
        )
    copies = 4 * COPIES * num_images  # bytes for each channel or class
    of_features, of_logits = copies * classifier.in_features, copies * classifier.out_features
    cpu = torch.device("cpu")
    needed = {cpu: distributed.get_local_world_size() * of_features}  # each process has all features
    needed[device] = of_logits + (needed[cpu] if device == cpu else of_features)  # the main process fits
    for place, size in needed.items():
        if size > available_memory(place):
            raise UserError(
                f"SOLVER.PROBE_EPOCHS needs {gib(size)} of memory ({place.type}) for {num_images} features of"
                f" {classifier.in_features} channels and {classifier.out_features} classes,"
                f" {gib(available_memory(place))} are free; set it to 0, or lower DATASET.TRAIN_FRACTION"
            )


def train_classifier(
    student: Any, loader: Loader, precision: Precision, max_passes: int, check: Callable[[], None] = lambda: None
) -> str:
    """Train the student's classifier, in place, on the un-augmented training images; nothing else changes.

    All processes of a group call it together. The result depends neither on a seed nor on the present classifier.

    Args:
        student: the student, on its device; it runs in evaluation mode and without gradients.
        loader: the loader of the training set.
        precision: the precision of the student's forward passes.
        max_passes: the number of passes over the features after which L-BFGS stops, if it has not converged before.
        check: a function that is called before each batch, equally often in all processes; an exception ends the probe.

    Returns:
        A line for the user.
    """
    start = time.perf_counter()
    features = pooled_features(student, loader, precision, check)
    computed = time.perf_counter()
    classifier: nn.Linear = student.get_classifier()
    device, size = classifier.weight.device, classifier.out_features
    weight, bias, passes = distributed.run_on_main(
        lambda: fit(features.to(device), loader.targets.to(device), size, max_passes, classifier.bias is not None)
    )
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if classifier.bias is not None:
            classifier.bias.copy_(bias)
    return (
        f"probe: {len(features)} features of {features.shape[1]} channels computed once, in {computed - start:.1f} s;"
        f" classifier trained on them in {passes} passes, {time.perf_counter() - computed:.1f} s"
    )


def pooled_features(student: Any, loader: Loader, precision: Precision, check: Callable[[], None]) -> Tensor:
    """Return the pooled feature of every un-augmented image, float32 `[M, C]`, in index order, on the CPU."""
    found: List[Tuple[Tensor, Tensor]] = []
    batches, num_batches = loader.unaugmented(), -(-loader.num_images // loader.batch_size)
    with evaluation_mode(student):
        for _ in range(-(-num_batches // distributed.get_world_size())):
            check()
            batch = next(batches, None)
            if batch is None:  # the last batches do not reach every process
                continue
            with precision.autocast():
                _, feats = student(batch["image"])
            found.append((batch["index"].cpu(), feats["pooled_feat"].float().cpu()))
    parts = [part for of_process in distributed.all_gather(found) for part in of_process]
    indices, features = (torch.cat(tensors) for tensors in zip(*parts))
    return features[indices.argsort()]


def fit(
    features: Tensor, targets: Tensor, num_classes: int, max_passes: int, with_bias: bool = True
) -> Tuple[Tensor, Tensor, int]:
    """Return the weight `[N, C]` and the bias `[N]` of a linear classifier, on the CPU, and the passes that it took.

    It minimizes the cross-entropy plus `DECAY / 2` times the sum of the squared weights of features that are scaled to
    a deviation of 1, by L-BFGS, from zero.

    Args:
        features: the features, `[M, C]`.
        targets: the labels, int64 `[M]`.
        num_classes: the number of classes, `N`.
        max_passes: the largest number of passes over the features.
        with_bias: whether the classifier has a bias; otherwise it is 0.
    """
    mean, scale = features.mean(0), features.std(0, unbiased=False)
    scale = torch.where(scale > 1e-5 * mean.abs(), scale, torch.ones_like(scale))  # the others are constant
    shift = mean if with_bias else torch.zeros_like(scale)
    scaled = (features - shift) / scale
    weight = scaled.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = scaled.new_zeros(num_classes).requires_grad_(with_bias)
    optimizer = torch.optim.LBFGS(
        [weight, bias] if with_bias else [weight],
        max_iter=max_passes,
        max_eval=max_passes,
        line_search_fn="strong_wolfe",
    )
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(scaled, weight, bias), targets) + DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        weight = weight / scale
        return weight.cpu(), (bias - weight @ shift).cpu(), passes
