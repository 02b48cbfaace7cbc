"""`DATASET.AUGMENT resized_crop`: what a streaming loader makes of it."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from mdistiller.dataset import StreamLoader
from mdistiller.dataset.images.decode import View

CPU = torch.device("cpu")
Make = Callable[..., Any]


def test_resized_crop(make_split: Make, make_info: Make, make_options: Make, collect: Make) -> None:
    split = make_split(21, size=20)
    loader = StreamLoader(
        split, View(8, margin=True), make_info(), make_options(augment="resized_crop"), CPU, train=True
    )
    first = collect(loader)
    loader.set_epoch(1)
    second = collect(loader)
    assert first["image"].shape == (21, 3, 8, 8)
    by_index = [run["image"][run["index"].argsort()] for run in (first, second)]
    assert (by_index[0] != by_index[1]).flatten(1).any(1).all(), "an image has the same crop in two epochs"


def test_resized_crop_without_mirroring(make_split: Make, make_info: Make, make_options: Make, collect: Make) -> None:
    split, view, runs = make_split(21, size=20), View(8, margin=True), []
    for flip in (True, False):
        options = make_options(augment="resized_crop", flip=flip)
        runs.append(collect(StreamLoader(split, view, make_info(), options, CPU, train=True)))
    one, other = (run["image"] for run in runs)
    assert torch.equal(runs[0]["index"], runs[1]["index"])
    same, mirrored = ((one == image).flatten(1).all(1) for image in (other, other.flip(3)))
    assert (same | mirrored).all() and 0 < mirrored.sum() < 21


def test_resized_crop_is_that_of_torchvision() -> None:
    from mdistiller.dataset.loading.stream_loader import resized_crop

    # every pixel tells where it is, so that the mean of a crop tells its center, and the spread its extent
    column = np.tile(np.arange(100, dtype=np.uint8) * 2, (100, 1))
    picture = Image.fromarray(np.stack([column, column.T, column], axis=2))
    transform = transforms.Compose([transforms.RandomResizedCrop(8), transforms.RandomHorizontalFlip()])
    ours = np.stack([np.asarray(resized_crop(picture, 8, seed)) for seed in range(800)]).astype(float)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.stack([np.asarray(transform(picture)) for _ in range(800)]).astype(float)
    for figure in (
        lambda x: x.mean((1, 2)),
        lambda x: x.std((1, 2)),
        lambda x: x[:, :, -1, 0] - x[:, :, 0, 0],
    ):
        one, other = figure(ours), figure(theirs)
        error = np.sqrt((one.var(0) + other.var(0)) / 800)
        assert (np.abs(one.mean(0) - other.mean(0)) < 4 * error).all()
        assert (np.abs(one.std(0) / other.std(0) - 1) < 0.15).all()
