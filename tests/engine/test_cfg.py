import pytest
import yaml

from mdistiller.engine.cfg import CFG, dump, experiment_name, load_cfg, resolved, show_cfg
from mdistiller.errors import UserError
from tests.conftest import REPO

CONFIGS = sorted((REPO / "configs").rglob("*.yaml"))


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


def test_base_files_chain_and_are_relative_to_the_file(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/a.yaml").write_text("SOLVER: {LR: 0.3, EPOCHS: 7}\n")
    (tmp_path / "base/b.yaml").write_text("_BASE_: a.yaml\nSOLVER: {EPOCHS: 8}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: base/b.yaml\nDISTILLER: {TYPE: KD}\n")
    cfg = load_cfg(str(tmp_path / "c.yaml"), ["SOLVER.LR", "1e-2"])
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS, cfg.DISTILLER.TYPE) == (0.01, 8, "KD")
    assert CFG.SOLVER.LR == 0.05  # the defaults stay what they are


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.LRR", "1"], "unknown config key SOLVER.LRR in the command line; did you mean SOLVER.LR"),
        (["SOLVR.LR", "1"], "unknown config key SOLVR.*did you mean"),
        (["KD.LOSS.CE", "1"], "unknown config key KD.LOSS.CE .*did you mean.*KD.LOSS.CE_WEIGHT"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", "holds a list; expected sections"),
        ("SOLVER: {LR: 0.1\n", "is not valid YAML"),
        ("SOLVER: 3\n", "SOLVER in .* is a section"),
        ("SOLVER: {LRR: 3}\n", "unknown config key SOLVER.LRR in .*bad.yaml"),
        ("_BASE_: bad.yaml\n", "leads back to the file itself"),
        ("_BASE_: gone.yaml\n", "gone.yaml cannot be read"),
        ("SOLVER: !!python/object/apply:os.system ['touch owned']\n", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_cfg(str(tmp_path / "bad.yaml"))
    assert not (tmp_path / "owned").exists()


def test_a_missing_file_offers_its_neighbours():
    with pytest.raises(UserError, match="did you mean .*res32x4_res8x4.yaml"):
        load_cfg(str(REPO / "configs/cifar100/sfakd/res32x4_res8x.yaml"))


def test_words_that_yaml_reads_as_booleans():
    cfg = load_cfg(None, ["SOLVER.AMP", "off", "DATASET.IN_MEMORY", "yes", "EXPERIMENT.NAME", "2024"])
    assert (cfg.SOLVER.AMP, cfg.DATASET.IN_MEMORY, cfg.EXPERIMENT.NAME) == ("off", "yes", "2024")
    assert load_cfg(None, ["DATASET.IN_MEMORY", "no"]).DATASET.IN_MEMORY == "no"


@pytest.mark.parametrize("word", ["007", "1:30", "on", "0x10", "1.10", "2024-01-01", "#3", "[a]", "null"])
def test_a_text_stays_as_it_was_typed(word):
    assert word == load_cfg(None, ["EXPERIMENT.NAME", word]).EXPERIMENT.NAME


def test_upstreams_own_scripts_merge(tmp_path):
    (tmp_path / "up.yaml").write_text("KD:\n  TEMPERATURE: 4\nDISTILLER: {TYPE: KD}\n")
    cfg = CFG.clone()
    cfg.merge_from_file("up.yaml")
    cfg.merge_from_list(["KD.LOSS.CE_WEIGHT", 1, "SOLVER.LR", "0.2"])
    cfg.freeze()
    assert (cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT, cfg.SOLVER.LR, cfg.DISTILLER.TYPE) == (4.0, 1.0, 0.2, "KD")
    assert CFG.KD.TEMPERATURE == 4.0
    assert CFG.DISTILLER.TYPE == "NONE"


def test_a_path_far_off_is_not_searched_for():
    with pytest.raises(UserError, match="did you mean .*res32x4_res8x4"):
        load_cfg("/no/such/folder/res32x4_res8x4.yml")
    with pytest.raises(UserError, match="config  cannot be read|config . cannot be read"):
        load_cfg("")


def test_empty_and_none_overrides():
    cfg = load_cfg(None, ["DISTILLER.TEACHER_WEIGHTS", "", "DATASET.INPUT_SIZE", "None", "EXPERIMENT.NAME", "null_run"])
    assert (cfg.DISTILLER.TEACHER_WEIGHTS, cfg.DATASET.INPUT_SIZE, cfg.EXPERIMENT.NAME) == ("", None, "null_run")


def test_the_dump_loads_back(tmp_path):
    cfg = resolved(load_cfg("configs/demo/sfakd.yaml"), INPUT_SIZE=32, MEAN=(0.1, 0.2, 0.3))
    (tmp_path / "dump.yaml").write_text(dump(cfg))
    assert load_cfg(str(tmp_path / "dump.yaml")) == cfg
    assert yaml.safe_load(dump(cfg))["DATASET"]["MEAN"] == [0.1, 0.2, 0.3]


def test_show_cfg_shows_one_method(capsys):
    show_cfg(load_cfg("configs/demo/sfakd.yaml"))
    out = capsys.readouterr().out
    assert "SIGMA" in out
    assert "TEMPERATURE" not in out


def test_an_anchor_in_itself_is_refused(tmp_path):
    (tmp_path / "loop.yaml").write_text("SOLVER: &a {LR: *a}\n")
    with pytest.raises(
        UserError, match="loop.yaml is not valid YAML: more than .* an anchor .* may lead back to itself"
    ):
        load_cfg(str(tmp_path / "loop.yaml"))
    (tmp_path / "twice.yaml").write_text("SOLVER: {EPOCHS: &n 7, BATCH_SIZE: *n}\n")
    assert load_cfg(str(tmp_path / "twice.yaml")).SOLVER.BATCH_SIZE == 7
