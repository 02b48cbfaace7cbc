import copy
from contextlib import nullcontext

import pytest
import torch

from mdistiller import distributed
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.cfg.values import to_dict
from mdistiller.engine.resume import check_same_config
from mdistiller.engine.validate import check_same_settings, check_settings, config_errors, setting_errors
from mdistiller.errors import UserError
from tests.conftest import REPO
from tests.engine.cfg.test_cfg import CONFIGS


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("SOLVER.BATCH_SIZE", ["0", "1", "-4"]),
        ("SOLVER.EPOCHS", ["0", "-1"]),
        ("SOLVER.LR", ["0", "-0.1", ".nan", ".inf"]),
        ("SOLVER.SCHEDULE", ["stairs", ""]),
        ("SOLVER.LR_DECAY_STAGES", ["[3, 2]", "[2, 2]", "[1, a]", "[0]", "[true]"]),
        ("SOLVER.LR_DECAY_RATE", ["0", "1.5"]),
        ("SOLVER.WARMUP_EPOCHS", ["-1", ".nan", "1000"]),
        ("SOLVER.WEIGHT_DECAY", ["-1", ".nan"]),
        ("SOLVER.MOMENTUM", ["-0.1", "1"]),
        ("SOLVER.PRECISE_BN", ["-1", "-50", "1.5", "yes"]),
        ("SOLVER.EVAL_EVERY", ["0", "-1", "0.5", "2000000"]),
        ("LOG.TENSORBOARD_FREQ", ["0"]),
        ("LOG.SAVE_CHECKPOINT_FREQ", ["0", "-3"]),
        ("EXPERIMENT.SEED", ["-1", str(2**70)]),
        ("EXPERIMENT.PROJECT", [""]),
    ],
)
def test_values_out_of_range(key, values):
    for value in values:
        with pytest.raises(UserError, match="expected") as error:
            check_settings(load_cfg(None, [key, value]))
        assert "\n" not in str(error.value)
        assert str(error.value).startswith("EXPERIMENT.NAME" if key == "EXPERIMENT.PROJECT" else key)


def test_all_faults_at_once():
    with pytest.raises(UserError) as error:
        check_settings(load_cfg(None, ["SOLVER.LR", "-1", "SOLVER.EPOCHS", "0", "LOG.TENSORBOARD_FREQ", "0"]))
    lines = str(error.value).splitlines()
    assert [line.split(" is ")[0] for line in lines] == ["SOLVER.EPOCHS", "SOLVER.LR", "LOG.TENSORBOARD_FREQ"]


def test_the_defaults_pass():
    check_settings(load_cfg(None, []))
    check_settings(load_cfg(None, ["SOLVER.MOMENTUM", "0", "SOLVER.LR_DECAY_STAGES", "[]"]))
    check_settings(load_cfg(None, ["SOLVER.PRECISE_BN", "50", "SOLVER.PRECISE_BN_COMPARE", "True"]))
    with pytest.raises(
        UserError, match="SOLVER.PRECISE_BN_COMPARE is True; expected False where SOLVER.PRECISE_BN is 0"
    ):
        check_settings(load_cfg(None, ["SOLVER.PRECISE_BN_COMPARE", "True"]))
    with pytest.raises(UserError, match="SOLVER.NESTEROV is True; expected False where SOLVER.MOMENTUM is 0"):
        check_settings(load_cfg(None, ["SOLVER.MOMENTUM", "0", "SOLVER.NESTEROV", "True"]))
    with pytest.raises(UserError, match="SOLVER.NESTEROV is True; expected False with SOLVER.TYPE AdamW"):
        check_settings(load_cfg(None, ["SOLVER.TYPE", "AdamW", "SOLVER.NESTEROV", "True"]))


def test_batch_norms_without_statistics_are_not_frozen():
    check_settings(load_cfg(None, ["SOLVER.FREEZE_BN", "True", "DISTILLER.STUDENT_WEIGHTS", "some.pth"]))
    check_settings(load_cfg(None, ["SOLVER.FREEZE_BN", "True", "DISTILLER.STUDENT", "my.models:pretrained"]))
    with pytest.raises(UserError, match="SOLVER.FREEZE_BN is True, but resnet8 starts from random weights"):
        check_settings(load_cfg(None, ["SOLVER.FREEZE_BN", "True", "DISTILLER.STUDENT", "resnet8"]))


def test_a_method_without_a_loss():
    settings = ["DISTILLER.TYPE", "KD", "KD.LOSS.CE_WEIGHT", "0.0", "KD.LOSS.KD_WEIGHT", "0.0"]
    with pytest.raises(UserError, match="KD.LOSS.CE_WEIGHT and KD.LOSS.KD_WEIGHT are 0; set one above 0"):
        check_settings(load_cfg(None, settings))


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["SOLVER.TYPE", "sgd"], ["SOLVER.TYPE is 'sgd'"]),
        (["SOLVER.AMP", "half"], ["SOLVER.AMP is 'half'; expected one of off, bf16, fp16, auto"]),
        (
            ["DATASET.AUGMENT", "crop", "DATASET.PADDING", "-1", "DATASET.TRAIN_FRACTION", ".nan"],
            ["DATASET.AUGMENT is 'crop'; did", "DATASET.TRAIN_FRACTION is nan; expected", "DATASET.PADDING is -1; exp"],
        ),
        (["DATASET.CORRUPT", "delete"], ["DATASET.CORRUPT is 'delete'; known: refuse, skip, unchecked"]),
        (["DATASET.INPUT_SIZE", "[32, 32]"], ["DATASET.INPUT_SIZE is [32, 32]; expected the side in pixels"]),
        (["DATASET.MEAN", "[1, 2]"], ["DATASET.MEAN is given alone", "DATASET.MEAN is [1, 2]; give three numbers"]),
        (
            ["DATASET.IN_MEMORY", "yes", "DATASET.INPUT_SIZE", "96"],
            ["DATASET.IN_MEMORY yes cannot be combined with DATASET.AUGMENT resized_crop"],
        ),
        (
            ["DISTILLER.TYPE", "KD", "KD.LOSS.CE_WEIGHT", "-1", "KD.TEMPERATURE", "0"],
            [
                "KD.TEMPERATURE is 0.0; expected a number above 0",
                "KD.LOSS.CE_WEIGHT is -1.0; expected a weight of 0 or more",
            ],
        ),
        (["DISTILLER.TYPE", "KD", "DKD.T", "0"], []),  # what is not chosen is not used
    ],
)
def test_data_and_the_chosen_method(overrides, lines):
    faults = setting_errors(load_cfg(None, overrides))
    assert len(faults) == len(lines), faults
    for fault, line in zip(faults, lines):
        assert fault.startswith(line)


def test_settings_of_frozen_statistics():
    frozen = ["SOLVER.FREEZE_BN", "True", "DISTILLER.STUDENT_WEIGHTS", "some.pth", "SOLVER.PRECISE_BN", "5"]
    (fault,) = setting_errors(load_cfg(None, frozen))
    assert fault.startswith("SOLVER.PRECISE_BN is 5; expected 0 with SOLVER.FREEZE_BN True, which keeps the statistics")


@pytest.mark.parametrize(
    ("key", "differs"),
    [("DATASET.UNLABELED", False), ("LOG.PREFIX", False), ("DATASET.UNLABELED_RATIO", True), ("SOLVER.LR", True)],
)
def test_what_may_differ_between_processes(monkeypatch, key, differs):
    def gathered(settings):
        return [settings, {**settings, key: "another"}]

    monkeypatch.setattr(distributed, "all_gather", gathered)
    with pytest.raises(UserError, match=f"different settings .{key} is") if differs else nullcontext():
        check_same_settings(load_cfg(None))


def test_fp16_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (fault,) = setting_errors(load_cfg(None, ["SOLVER.AMP", "fp16"]))
    assert fault.startswith("SOLVER.AMP fp16 needs a CUDA device")


def test_stages_lie_within_the_epochs_where_they_count():
    short = ["SOLVER.EPOCHS", "15", "SOLVER.LR_DECAY_STAGES"]
    (fault,) = setting_errors(load_cfg(None, [*short, "[5, 16]"]))
    assert fault == (
        "SOLVER.LR_DECAY_STAGES is [5, 16]; expected none above SOLVER.EPOCHS, 15: give earlier ones, [] for a constant"
        " rate, or SOLVER.SCHEDULE linear"
    )
    for fine in (["[5, 15]"], ["[]"], ["[150, 180]", "SOLVER.SCHEDULE", "cosine"]):
        assert setting_errors(load_cfg(None, [*short, *fine])) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO / "configs")))
def test_every_shipped_config_passes(path):
    assert setting_errors(load_cfg(str(path))) == []


def test_a_key_that_a_saved_run_lacks_had_its_default():
    cfg = to_dict(load_cfg(None, ["DISTILLER.TYPE", "KDSVD"]))
    saved = copy.deepcopy(cfg)
    del saved["DATASET"]["FLIP"], saved["KDSVD"]["LAYOUT"]
    check_same_config(saved, cfg, "latest.pth")
    cfg["DATASET"]["FLIP"] = False
    with pytest.raises(UserError, match="DATASET.FLIP was True, now False"):
        check_same_config(saved, cfg, "latest.pth")


DOT = ["SOLVER.TRAINER", "dot", "DISTILLER.TYPE", "KD"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["SOLVER.ACCUMULATE", "0"],
            "SOLVER.ACCUMULATE is 0; expected 1 to 32 micro-batches of at least 2 images, for",
        ),
        (["SOLVER.ACCUMULATE", "33"], "SOLVER.ACCUMULATE is 33; expected 1 to 32 micro-batches"),
        (["SOLVER.CLIP_GRAD_NORM", "-1"], "SOLVER.CLIP_GRAD_NORM is -1.0; expected a norm above 0, or 0"),
        (["SOLVER.CLIP_GRAD_NORM", ".inf"], "SOLVER.CLIP_GRAD_NORM is inf; expected a norm"),
        (["SOLVER.LAYER_DECAY", "0"], "SOLVER.LAYER_DECAY is 0.0; expected a number above 0 and up to 1"),
        (["SOLVER.LAYER_DECAY", "1.1"], "SOLVER.LAYER_DECAY is 1.1; expected"),
        (["SOLVER.EPS", "-1e-8", "SOLVER.TYPE", "AdamW"], "SOLVER.EPS is -1e-08; expected a number above 0"),
        (["SOLVER.EPS", "1e-8"], "SOLVER.EPS is 1e-08; expected 0 with SOLVER.TYPE SGD"),
        (["SOLVER.BETAS", "[0.9, 0.99]"], "SOLVER.BETAS is [0.9, 0.99]; expected None with SOLVER.TYPE SGD"),
        (["SOLVER.BETAS", "[0.9, 1.0]", "SOLVER.TYPE", "AdamW"], "SOLVER.BETAS is [0.9, 1.0]; expected numbers from 0"),
        (["SOLVER.BETAS", "0.9", "SOLVER.TYPE", "AdamW"], "SOLVER.BETAS is 0.9; expected numbers from 0"),
        (["SOLVER.BETAS", "[0.9]", "SOLVER.TYPE", "AdamW"], "SOLVER.BETAS is [0.9]; SOLVER.TYPE AdamW has 2"),
        ([*DOT, "SOLVER.TYPE", "AdamW"], "SOLVER.TYPE is AdamW with SOLVER.TRAINER dot; expected SGD"),
        ([*DOT, "SOLVER.ACCUMULATE", "2"], "SOLVER.ACCUMULATE is 2 with SOLVER.TRAINER dot; expected 1"),
        ([*DOT, "SOLVER.CLIP_GRAD_NORM", "1"], "SOLVER.CLIP_GRAD_NORM is 1.0 with SOLVER.TRAINER dot; expected 0.0"),
        (
            [*DOT, "SOLVER.BACKBONE_LR_FACTOR", "0.5"],
            "SOLVER.BACKBONE_LR_FACTOR is 0.5 with SOLVER.TRAINER",
        ),
        ([*DOT, "SOLVER.LAYER_DECAY", "0.5"], "SOLVER.LAYER_DECAY is 0.5 with SOLVER.TRAINER dot; expected 1.0"),
    ],
)
def test_the_recipe(overrides, line):
    names = ["DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER", "resnet14"]
    (error,) = config_errors(load_cfg(None, [*names, *overrides]))
    assert error.startswith(line)
    assert "\n" not in error


def test_the_strength_of_ctkd_is_not_negative():
    faults = setting_errors(load_cfg(None, ["DISTILLER.TYPE", "CTKD", "CTKD.LAMBDA_MAX", "-1"]))
    assert faults == ["CTKD.LAMBDA_MAX is -1.0; expected 0 or more (the published code writes -1 for 1)"]


@pytest.mark.parametrize(("name", "setting"), [("DOT", "SOLVER.TRAINER dot"), ("TTM", "WTTM.WEIGHTED False")])
def test_methods_that_are_options_of_others(name, setting):
    (fault,) = config_errors(load_cfg(None, ["DISTILLER.TYPE", name]))
    assert fault.startswith(f"DISTILLER.TYPE {name} is an option of other methods: set") and setting in fault
