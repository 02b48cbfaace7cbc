"""Which settings of its data set a checkpoint brings to an evaluation or an export."""

from __future__ import annotations

from mdistiller.distillers import has_teacher
from mdistiller.engine.cfg import CFG, merge_overrides
from mdistiller.engine.evaluation.eval_checkpoint import use_described_dataset

CHECKPOINT = {
    "dataset": "imagefolder",
    "config": {"DATASET": {"TYPE": "imagefolder", "INPUT_SIZE": 72, "AUGMENT": "none", "VAL_FRACTION": 0.5}},
}


def described(*overrides: str) -> tuple[str, int, str, float]:
    cfg = CFG.clone()
    merge_overrides(cfg, overrides)
    use_described_dataset(cfg, CHECKPOINT, overrides, "student.pth")
    return cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE, cfg.DATASET.AUGMENT, cfg.DATASET.VAL_FRACTION


def test_another_data_set_is_seen_as_in_training() -> None:
    assert described() == ("imagefolder", 72, "none", 0.5)
    assert described("DATASET.TYPE", "webdataset") == ("webdataset", 72, "none", 0.0)
    assert described("DATASET.TYPE", "webdataset", "DATASET.AUGMENT", "auto") == ("webdataset", 72, "auto", 0.0)


def test_which_runs_had_a_teacher() -> None:
    assert has_teacher({"TYPE": "SFAKD", "TEACHER": "resnet14"})
    assert has_teacher({"TYPE": "of a plug-in", "TEACHER": "resnet14"})
    assert not has_teacher({"TYPE": "NONE", "TEACHER": "resnet14"})
    assert not has_teacher({"TYPE": "SFAKD", "TEACHER": ""})
    assert not has_teacher({})
