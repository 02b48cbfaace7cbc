"""The whole configuration is judged at once, before data or models are built."""

import pytest

from mdistiller.distillers import distiller_dict
from mdistiller.engine import build, validate
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.networks.build import released_weights
from mdistiller.errors import UserError


def lines_of(*overrides, path=None):
    with pytest.raises(UserError) as error:
        validate.load_valid_cfg(path, overrides)
    return str(error.value).splitlines()


def test_faults_of_all_kinds_at_once(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "SOLVER: {LRR: 1, EPOCHS: many, MOMENTUM: 2}\nSOLVR: {LR: 1}\nDATASET: 3\nKD: {LOSS: {CE_WEIGHT: -1}, T: 4}\n"
        "DISTILLER: {TYPE: KD, STUDENT: resnet9, TEACHER: wrn_16_2, TEACHER_WEIGHTS: gone.pth}\n"
    )
    given = [
        "SOLVER.WARMUP_EPOCHS",
        "x",
        "LOG.WANDB",
        "7",
        "SOLVER.TRAINER",
        "dott",
        "DATASET.TYPE",
        "cifar",
        "SOLVER.LR",
    ]
    assert [line[:58] for line in lines_of(*given, path="bad.yaml")] == [
        "unknown config key SOLVER.LRR in bad.yaml; did you mean SO",
        "SOLVER.EPOCHS in bad.yaml is 'many'; expected a whole numb",
        "unknown config key SOLVR in bad.yaml; did you mean SOLVER.",
        "DATASET in bad.yaml is a section, given 3; set its keys, D",
        "unknown config key KD.T in bad.yaml; did you mean DKD.T or",
        "override 'SOLVER.LR' has no value; expected KEY VALUE pair",
        "SOLVER.WARMUP_EPOCHS in the command line is 'x'; expected ",
        "LOG.WANDB in the command line is 7; expected a boolean, fo",
        "unknown trainer 'dott'; did you mean dot or crd_dot?",
        "unknown data set 'cifar'; did you mean cifar10 or cifar100",
        "unknown CIFAR model 'resnet9'; did you mean resnet8 or res",
        "DISTILLER.TEACHER_WEIGHTS: no checkpoint at gone.pth; give",
        "SOLVER.MOMENTUM is 2.0; expected a number from 0 to below ",
        "KD.LOSS.CE_WEIGHT is -1.0; expected a weight of 0 or more",
    ]


def test_what_stands_in_for_a_refused_value_is_not_blamed(tmp_path):
    (tmp_path / "c.yaml").write_text("SOLVER: {LR_DECAY_STAGES: [300]}\n")
    assert len(lines_of("SOLVER.EPOCHS", "3OO", path="c.yaml")) == 1  # not also that 300 is above the default of 240


@pytest.mark.parametrize("method", ["NONE", "SFAKD", "SIMKD"])
def test_losses_that_dot_cannot_part_show_before_anything_is_built(method):
    cfg = load_cfg(None, ["DISTILLER.TYPE", method, "SOLVER.TRAINER", "dot", "DISTILLER.TEACHER", "resnet56"])
    (line,) = build.config_errors(cfg)
    assert line.startswith("SOLVER.TRAINER dot needs loss_ce and another loss, this distiller gives loss_")
    cfg.merge_from_list(["SOLVER.TRAINER", "base"])
    assert build.config_errors(cfg) == []


def test_nothing_is_read_or_built_first(monkeypatch):
    for name in ("get_dataset", "build_student", "build_teacher", "build_distiller"):
        monkeypatch.setattr(build, name, lambda *args, name=name: pytest.fail(f"{name} was called"))
    for method in distiller_dict:
        with pytest.raises(UserError) as error:
            build.build_trainer(load_cfg(None, ["DISTILLER.TYPE", method, "SOLVER.LR", "-1", "DATASET.PADDING", "-1"]))
        assert len(str(error.value).splitlines()) == 2


def test_a_method_without_ranges_is_left_alone(registries_as_before, tmp_path):
    (tmp_path / "free.py").write_text(
        "from ._base import Distiller\n\n\nclass Free(Distiller):\n"
        "    def __init__(self, student, teacher, cfg):\n        super().__init__(student, teacher)\n"
    )
    given = ["PLUGINS", "free.py", "DISTILLER.TYPE", "FREE", "FREE.TEMPERATURE", "-1", "FREE.CE_WEIGHT", "-2"]
    assert build.config_errors(load_cfg(None, given)) == []


def test_a_released_teacher_that_is_not_there_yet():
    with pytest.raises(UserError, match=r"no checkpoint at .*resnet56_vanilla.*; get cifar_teachers.tar with"):
        released_weights("resnet56", "cifar100", None)
