"""Both loaders yield batches of a device without waiting for it, for every augmentation."""

from __future__ import annotations

import pytest

from mdistiller.dataset import get_dataset
from mdistiller.engine.cfg import load_cfg
from tests.fake_cuda import fake_cuda


def loaders(folder, device, in_memory, augment, *overrides):
    cfg = load_cfg(
        None,
        [
            *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(folder), "DATASET.INPUT_SIZE", "16"),
            *("DATASET.IN_MEMORY", in_memory, "DATASET.AUGMENT", augment, "DATASET.NUM_WORKERS", "0"),
            *("SOLVER.BATCH_SIZE", "8", "DATASET.TEST.BATCH_SIZE", "4", *overrides),
        ],
    )
    return get_dataset(cfg, device)[:2]


def check(loader, gpu, name):
    loader.set_epoch(1)
    batches = iter(loader)
    seen = [next(batches)]  # copies the plan of the epoch
    with gpu.step(name):
        seen.extend(batches)
    assert len(seen) == len(loader)
    for batch in seen:
        assert all(tensor.device == gpu.device for tensor in batch.values())
    assert batch["image"].shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("augment", ["pad_crop", "rotate_flip", "none"])
@pytest.mark.parametrize("options", [(), ("DATASET.FLIP", "False")], ids=["flip", "no flip"])
def test_images_on_the_device(image_folder, augment, options):
    with fake_cuda() as gpu:
        for loader in loaders(image_folder, gpu.device, "yes", augment, *options):
            check(loader, gpu, augment)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("augment", ["pad_crop", "rotate_flip", "resized_crop", "none"])
def test_images_of_workers(image_folder, augment):
    with fake_cuda() as gpu:
        for loader in loaders(image_folder, gpu.device, "no", augment):
            check(loader, gpu, augment)
