import pytest
import yaml

from mdistiller.engine.cfg import CFG, dump, experiment_name, load_cfg, resolved, show_cfg
from mdistiller.errors import UserError
from tests.conftest import REPO

CONFIGS = sorted(path for path in (REPO / "configs").rglob("*.yaml") if "studies" not in path.parts)  # of runs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO / "configs")))
def test_every_shipped_config_loads(path):
    cfg = load_cfg(str(path))
    assert list(cfg.SOLVER.LR_DECAY_STAGES) == sorted(cfg.SOLVER.LR_DECAY_STAGES)
    if "_base_" not in path.parts:
        assert cfg.EXPERIMENT.NAME


def test_run_folders_of_shipped_configs_differ():
    names = [load_cfg(str(p)).EXPERIMENT.NAME for p in CONFIGS if "_base_" not in p.parts]
    assert len(names) == len(set(names))


def test_the_readme_paths_follow_from_the_configs():
    assert load_cfg("configs/cifar100/sfakd/res32x4_res8x4.yaml").EXPERIMENT.NAME == "sfakd_res32x4_res8x4"
    assert load_cfg("configs/imagenet/r50_mv1/sfakd.yaml").EXPERIMENT.NAME == "sfakd_res50_mv1"


def test_upstream_defaults():
    solver = {k: CFG.SOLVER[k] for k in ("BATCH_SIZE", "EPOCHS", "LR", "LR_DECAY_STAGES", "LR_DECAY_RATE", "MOMENTUM")}
    assert list(solver.values()) == [64, 240, 0.05, [150, 180, 210], 0.1, 0.9]
    assert (CFG.SOLVER.WEIGHT_DECAY, CFG.SOLVER.TYPE, CFG.SOLVER.TRAINER) == (0.0001, "SGD", "base")
    assert (CFG.KD.TEMPERATURE, CFG.KD.LOSS.CE_WEIGHT, CFG.KD.LOSS.KD_WEIGHT) == (4, 0.1, 0.9)
    assert CFG.LOG.WANDB is True
    assert CFG.LOG.PREFIX == "./output"


def test_an_upstream_yaml_loads_unchanged(tmp_path):
    (tmp_path / "up.yaml").write_text(
        "EXPERIMENT:\n  NAME: ''\n  TAG: 'kd,res32x4,res8x4'\n  PROJECT: 'cifar100_baselines'\n"
        "DISTILLER:\n  TYPE: 'KD'\n  TEACHER: 'resnet32x4'\n  STUDENT: 'resnet8x4'\n"
        "SOLVER:\n  BATCH_SIZE: 64\n  EPOCHS: 240\n  LR: 0.05\n  LR_DECAY_STAGES: [150, 180, 210]\n"
        "  LR_DECAY_RATE: 0.1\n  WEIGHT_DECAY: 0.0005\n  MOMENTUM: 0.9\n  TYPE: 'SGD'\n"
        "KD:\n  TEMPERATURE: 4\n  LOSS:\n    CE_WEIGHT: 1\n"
    )
    cfg = load_cfg(str(tmp_path / "up.yaml"))
    assert experiment_name(cfg) == "cifar100_baselines/kd,res32x4,res8x4"
    assert (cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT) == (4.0, 1.0)
    assert isinstance(cfg.KD.TEMPERATURE, float)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.LRR", "1"], "unknown config key SOLVER.LRR in the command line; did you mean SOLVER.LR"),
        (["SOLVR.LR", "1"], "unknown config key SOLVR.*did you mean"),
        (["KD.LOSS.CE", "1"], "unknown config key KD.LOSS.CE .*did you mean.*KD.LOSS.CE_WEIGHT"),
        (["KD.QQQQQQQQQQQQ", "1"], "key KD.QQQQQQQQQQQQ .*; known: KD.TEMPERATURE, KD.LOSS, KD.LOGIT_STAND$"),
        (["some/run", "1"], "unknown config key some/run .*; known: EXPERIMENT, DATASET, .*, AT, .*, WTTM"),
        (["SOLVER.LR"], "override 'SOLVER.LR' has no value; expected KEY VALUE pairs"),
        (["SOLVER.LR", "fast"], "SOLVER.LR in the command line is 'fast'; expected a number"),
        (["SOLVER.LR", "9" * 400], "SOLVER.LR .* 9+; expected a number"),
        (["SOLVER.LR", "True"], "SOLVER.LR .* True; expected a number"),
        (["SOLVER.EPOCHS", "2.5"], "SOLVER.EPOCHS .* 2.5; expected a whole number"),
        (["SOLVER.EPOCHS", "True"], "SOLVER.EPOCHS .* True; expected a whole number"),
        (["SOLVER.LR_DECAY_STAGES", "60"], "expected a list"),
        (["SOLVER", "60"], "SOLVER in the command line is a section, given 60"),
        (["LOG.WANDB", "perhaps"], "LOG.WANDB .* 'perhaps'; expected a boolean"),
    ],
)
def test_bad_overrides(overrides, message):
    with pytest.raises(UserError, match=message):
        load_cfg(None, overrides)


def test_upstreams_own_scripts_merge(tmp_path):
    (tmp_path / "up.yaml").write_text("KD:\n  TEMPERATURE: 4\nDISTILLER: {TYPE: KD}\n")
    cfg = CFG.clone()
    cfg.merge_from_file("up.yaml")
    cfg.merge_from_list(["KD.LOSS.CE_WEIGHT", 1, "SOLVER.LR", "0.2"])
    cfg.freeze()
    assert (cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT, cfg.SOLVER.LR, cfg.DISTILLER.TYPE) == (4.0, 1.0, 0.2, "KD")
    assert CFG.KD.TEMPERATURE == 4.0
    assert CFG.DISTILLER.TYPE == "NONE"


def test_the_dump_loads_back(tmp_path):
    cfg = resolved(load_cfg("configs/demo/sfakd.yaml"), INPUT_SIZE=32, MEAN=(0.1, 0.2, 0.3))
    (tmp_path / "dump.yaml").write_text(dump(cfg))
    assert load_cfg(str(tmp_path / "dump.yaml")) == cfg
    assert yaml.safe_load(dump(cfg))["DATASET"]["MEAN"] == [0.1, 0.2, 0.3]


def test_show_cfg_shows_one_method(capsys):
    show_cfg(load_cfg("configs/demo/sfakd.yaml"))
    out = capsys.readouterr().out
    assert "SIGMA" in out
    assert "LOGIT_STAND" not in out
