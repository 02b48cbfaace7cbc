"""RandAugment, TrivialAugment and random erasing of single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdistiller.dataset import StreamLoader
from mdistiller.dataset.augment.policy import ImagePolicy
from mdistiller.dataset.options import read_options
from mdistiller.engine.cfg import load_cfg
from tests.dataset.augment.test_mixing import loader_of

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
MEAN = (0.2, 0.4, 0.6)


def policy_of(*overrides: str) -> ImagePolicy:
    return ImagePolicy(read_options(load_cfg(None, list(overrides)), 16), MEAN)


@pytest.mark.parametrize(
    "overrides",
    [["DATASET.POLICY", "rand_augment"], ["DATASET.POLICY", "trivial_augment"], ["DATASET.ERASING", "1"]],
)
def test_it_follows_from_the_seed(overrides: list[str]) -> None:
    policy, state, before = policy_of(*overrides), torch.get_rng_state(), PIXELS.copy()
    images = [policy(PIXELS, seed) for seed in range(12)]
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in images)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(PIXELS, before)
    assert len({image.tobytes() for image in images}) > 4
    assert all(np.array_equal(policy(PIXELS, seed), image) for seed, image in enumerate(images))


def test_erased_boxes_have_the_mean_color() -> None:
    policy = policy_of("DATASET.ERASING", "1")
    for seed in range(5):
        changed = (policy(PIXELS, seed) != PIXELS).any(2)
        rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
        box = policy(PIXELS, seed)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == [51, 102, 153]).all()
        assert 0.01 < box[..., 0].size / 256 < 0.4


def test_how_often_boxes_are_erased() -> None:
    policy = policy_of("DATASET.ERASING", "0.25")
    changed = sum(not np.array_equal(policy(PIXELS, seed), PIXELS) for seed in range(200))
    assert 30 < changed < 70


def test_strength_and_number_of_operations() -> None:
    weak = policy_of("DATASET.POLICY", "rand_augment", "DATASET.POLICY_OPS", "1", "DATASET.POLICY_MAGNITUDE", "1")
    strong = policy_of("DATASET.POLICY", "rand_augment", "DATASET.POLICY_OPS", "4", "DATASET.POLICY_MAGNITUDE", "25")
    far = [sum(float(np.abs(p(PIXELS, s).astype(int) - PIXELS).mean()) for s in range(20)) for p in (weak, strong)]
    assert far[0] < far[1]


def test_a_loader_changes_training_images_only(image_folder) -> None:  # type: ignore[no-untyped-def]
    train, val, _, _ = loader_of(image_folder, "DATASET.POLICY", "rand_augment", "DATASET.AUGMENT", "none")
    plain, plain_val, _, _ = loader_of(image_folder, "DATASET.AUGMENT", "none")
    assert isinstance(train, StreamLoader)
    assert not isinstance(plain, StreamLoader)
    for loader in (train, plain):
        loader.set_epoch(1)
    first = list(train)
    changed = [not torch.equal(a, b) for x, y in zip(first, plain) for a, b in zip(x["image"], y["image"])]
    assert sum(changed) > len(changed) / 2
    for a, b in zip(val, plain_val):
        assert torch.equal(a["image"], b["image"])
    for a, b in zip(train.iterate(2), first[2:]):  # independent of where the epoch starts
        assert torch.equal(a["image"], b["image"])
    assert (train.num_variants, train.unlimited_by) == (None, "DATASET.POLICY rand_augment")
    train.set_epoch(2)
    other = {int(i): image for batch in train for i, image in zip(batch["index"], batch["image"])}
    same = [torch.equal(image, other[int(i)]) for batch in first for i, image in zip(batch["index"], batch["image"])]
    assert sum(same) < len(same) / 2
