"""Runs with each part of the recipe, killed and resumed, end bit for bit like undisturbed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.data_forms import write_in_form
from tests.engine.run.test_exact_resume import STEPS, built, crashed_and_resumed, folder  # noqa: F401 (a fixture)
from tests.soak.kill_and_resume import differences

OPTIMIZER = ["SOLVER.TYPE", "AdamW", "SOLVER.LR", "0.002", "SOLVER.WEIGHT_DECAY", "0.05", "SOLVER.DECAY_NORMS", "False"]
PARTS = ["SOLVER.ACCUMULATE", "2", "SOLVER.CLIP_GRAD_NORM", "0.5", "SOLVER.LAYER_DECAY", "0.8"]
RECIPES = {
    "optimizer": ("KD", [*OPTIMIZER, *PARTS, "SOLVER.SCHEDULE", "cosine"]),
    "ema": ("SFAKD", ["SOLVER.EMA", "0.9", "SOLVER.PRECISE_BN", "2"]),
    "mixing": ("KD", ["DATASET.MIXUP", "0.4", "DATASET.CUTMIX", "1", "SOLVER.LABEL_SMOOTHING", "0.1", *PARTS]),
    "policy": ("SFAKD", ["DATASET.POLICY", "rand_augment", "DATASET.ERASING", "0.5", "DATASET.MIXUP", "1"]),
    "views": ("KD", ["DATASET.AUGMENT", "resized_crop", "DATASET.VIEWS", "2", "TEACHER_CACHE", "memory"]),
    "parts": ("SFAKD", [*PARTS, "TEACHER_CACHE", "memory"]),
    "rates": ("KD", ["SOLVER.BACKBONE_LR_FACTOR", "0.5", "DATASET.POLICY", "trivial_augment"]),
    "lamb": ("SFAKD", ["SOLVER.TYPE", "lamb", "SOLVER.LR", "0.002", "SOLVER.EMA", "0.9"]),
    "shards": ("KD", ["DATASET.TYPE", "webdataset", "DATASET.ROOT", "shards", "DATASET.IN_MEMORY", "no"]),
    "tables": ("SFAKD", ["DATASET.TYPE", "huggingface", "DATASET.ROOT", "tables", "DATASET.IN_MEMORY", "no"]),
}
LIBRARIES = {"lamb": "timm", "shards": "webdataset", "tables": "datasets"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run(folder: Path, name: str) -> None:  # noqa: F811
    method, more = RECIPES[name]
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    if name in ("shards", "tables"):
        write_in_form(name, folder, Path())

    def make(run: str):  # type: ignore[no-untyped-def]
        return built(folder, run, method, epochs=2, more=more)

    whole = make("whole")
    whole.train()
    resumed = crashed_and_resumed(STEPS + 5, make)
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert resumed.progress.last == whole.progress.last
