"""A pass over the training images as validation would show them."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import pytest
import torch

from mdistiller import distributed
from mdistiller.dataset import ArraySplit, DeviceLoader, Loader, StreamLoader
from mdistiller.dataset.images.decode import View

CPU = torch.device("cpu")
KINDS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "pad_crop": ("device", {}),
    "rotate_flip": ("device", {"augment": "rotate_flip", "rotation": 20.0, "padding": 0}),
    "mixed": ("device", {"mixup": 0.5, "cutmix": 1.0}),
    "streamed pad_crop": ("stream", {}),
    "resized_crop": ("stream", {"augment": "resized_crop", "padding": 0}),
    "policy": ("stream", {"policy": "rand_augment", "erasing": 1.0}),
}


def load(kind: str, make_split: Any, make_info: Any, make_options: Any, train: bool) -> Loader:
    place, changed = KINDS[kind]
    split: ArraySplit = make_split(21)
    options = make_options(batch_size=8, test_batch_size=8, **changed)
    if place == "device":
        return DeviceLoader(split, make_info(), options, CPU, train)
    return StreamLoader(split, View(8, margin=False), make_info(), options, CPU, train)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_those_of_a_validation_pass(
    kind: str, make_split: Any, make_info: Any, make_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, validation = (load(kind, make_split, make_info, make_options, train) for train in (True, False))
    augmented = next(iter(loader))["image"]
    found, expected = list(loader.unaugmented()), list(validation)
    assert [len(batch["index"]) for batch in found] == [8, 8, 5]
    for batch, other in zip(found, expected):
        for key in ("image", "target", "index"):
            assert torch.equal(batch[key], other[key]), key
    assert torch.equal(next(iter(loader))["image"], augmented)  # training goes on as before
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    assert [batch["index"].tolist() for batch in loader.unaugmented()] == [list(range(8, 16))]
