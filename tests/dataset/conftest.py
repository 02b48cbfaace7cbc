"""Fixtures: a configuration, small data sets and image folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch
from PIL import Image
from yacs.config import CfgNode

from mdistiller.dataset import ArraySplit, DatasetInfo, Loader
from mdistiller.dataset.options import Options
from mdistiller.engine.cfg import CFG


def _cfg(**dataset: Any) -> CfgNode:
    cfg = CfgNode()
    cfg.EXPERIMENT = CfgNode({"SEED": 0})
    cfg.SOLVER = CfgNode({"BATCH_SIZE": 64})
    cfg.DATASET = CFG.DATASET.clone()
    cfg.DATASET.NUM_WORKERS, cfg.DATASET.TEST.BATCH_SIZE = 0, 64
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


def _options(**changed: Any) -> Options:
    given: Dict[str, Any] = {
        "batch_size": 8,
        "test_batch_size": 8,
        "input_size": 8,
        "augment": "pad_crop",
        "padding": 4,
        "in_memory": "auto",
        "memory_gb": 2.0,
        "num_workers": 0,
        "train_fraction": 1.0,
        "fraction_seed": 0,
        "seed": 0,
        "statistics": None,
    }
    return Options(**{**given, **changed})


@pytest.fixture
def make_cfg() -> Callable[..., CfgNode]:
    """Return a function(**DATASET keys) -> configuration with the defaults of the engine."""
    return _cfg


@pytest.fixture
def make_options() -> Callable[..., Options]:
    """Return a function(**changes) -> options for images of 8×8 px in batches of 8."""
    return _options


@pytest.fixture
def make_split() -> Callable[..., ArraySplit]:
    """Return a function(num_images, size, num_classes) -> random images."""

    def make(num_images: int = 21, size: int = 8, num_classes: int = 3) -> ArraySplit:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (num_images, size, size, 3), dtype=np.uint8)
        return ArraySplit(images, rng.integers(0, num_classes, num_images).tolist())

    return make


@pytest.fixture
def make_info() -> Callable[..., DatasetInfo]:
    """Return a function(size) -> info of three classes that leaves pixel values as they are, 0 to 255."""

    def make(size: int = 8) -> DatasetInfo:
        return DatasetInfo("test", ("a", "b", "c"), size, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))

    return make


@pytest.fixture
def collect() -> Callable[..., Dict[str, torch.Tensor]]:
    """Return a function(loader, start_step) -> all batches of a pass, concatenated."""

    def run(loader: Loader, start_step: int = 0) -> Dict[str, torch.Tensor]:
        batches: List[Dict[str, torch.Tensor]] = list(loader.iterate(start_step))
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    return run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache out of the user's home, and read the repository's own data."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MDISTILLER_CACHE", str(folder))
    monkeypatch.setenv("MDISTILLER_DATA", str(Path(__file__).resolve().parents[2] / "data"))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Return a folder of 3 classes with 4 training and 2 validation images each: RGB, gray, RGBA; not square."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = ((40, 50, 3), (50, 36), (33, 32, 4), (32, 32, 3))[i]
                pixels = rng.integers(80 * label, 80 * label + 80, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'PNG' if i == 1 else 'png'}")
    return tmp_path / "set"
