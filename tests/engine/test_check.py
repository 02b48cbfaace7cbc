import pytest

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.check import check_settings
from mdistiller.errors import UserError


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
    with pytest.raises(UserError, match="SOLVER.NESTEROV is True; expected False where SOLVER.MOMENTUM is 0"):
        check_settings(load_cfg(None, ["SOLVER.MOMENTUM", "0", "SOLVER.NESTEROV", "True"]))
