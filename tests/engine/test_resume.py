"""The length and the stages of a resumed run: the saved ones, unless the command line gives others."""

import json
import shutil

import pytest
import yaml

from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg, to_dict
from mdistiller.engine.resume import schedule_changes
from mdistiller.engine.validate import load_valid_cfg
from mdistiller.errors import UserError
from tests.conftest import make_image_folder
from tests.soak.kill_and_resume import differences

# on its own, no length for these stages
YAML = """
DATASET: {TYPE: imagefolder, ROOT: images, INPUT_SIZE: 16, NUM_WORKERS: 0, MEAN: [0.4, 0.4, 0.4], STD: [0.2, 0.2, 0.2]}
DISTILLER: {TYPE: NONE, STUDENT: resnet8}
SOLVER: {EPOCHS: 3, LR: 0.1, LR_DECAY_STAGES: [5], BATCH_SIZE: 18, AMP: off}
LOG: {WANDB: False}
EXPERIMENT: {NAME: run}
"""
GIVEN = ["SOLVER.EPOCHS", "4", "SOLVER.LR_DECAY_STAGES", "[1, 3]"]
STATE = "output/run/latest.pth"
OTHER_RATES = (
    "; the completed epochs used the earlier learning rates, so the result differs from that of a run with the new"
    " settings from the start"
)


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with a run of 4 epochs that was killed after 2 of them; its rate falls after epochs 1 and 3."""
    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        patch.setenv("TORCHELASTIC_RUN_ID", "job 1")
        make_image_folder(place / "images")
        (place / "run.yaml").write_text(YAML)
        trainer = build_trainer(load_valid_cfg("run.yaml", GIVEN))
        train_epoch = trainer.train_epoch

        def crash_in_the_third(epoch, *rest):
            if epoch == 3:
                raise Crash
            return train_epoch(epoch, *rest)

        trainer.train_epoch = crash_in_the_third
        with pytest.raises(Crash):
            trainer.train()
    return place


@pytest.fixture
def place(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def resume(command, place):
    def call(*overrides, how=("--resume",)):
        return command("train", "--cfg", "run.yaml", *how, *overrides)

    return call


def rates(place):
    rows = [json.loads(line) for line in (place / "output/run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    return [round(row["lr"], 6) for row in rows]


def length(place):
    """What the run's files say of its length."""
    config = yaml.safe_load((place / "output/run/config.yaml").read_text())
    state = checkpoint.read_checkpoint(place / STATE)["config"]
    epochs = json.loads((place / "output/run/summary.json").read_text())["epochs"]
    assert config["SOLVER"]["EPOCHS"] == state["SOLVER"]["EPOCHS"] == epochs
    assert config["SOLVER"]["LR_DECAY_STAGES"] == state["SOLVER"]["LR_DECAY_STAGES"]
    return epochs


def test_what_was_given_at_the_start_need_not_be_given_again(resume, place):
    status, out, err = resume()
    assert (status, err) == (0, "")
    assert (rates(place), length(place)) == ([0.1, 0.01, 0.01, 0.001], 4)
    for key, saved, other in (("EPOCHS", "4", "3"), ("LR_DECAY_STAGES", "[1, 3]", "[5]")):
        key = f"SOLVER.{key}"
        line = (
            f"note: {key} stays {saved}, that of the saved run; the configuration has {other}, give {key} on the"
            " command line to change it"
        )
        assert line in out.splitlines()
    assert "resumed after epoch 2 of 4" in out
    # once it is done, its table again
    assert resume()[0] == 0
    assert length(place) == 4


def test_what_is_given_again_needs_no_note(resume, place):
    status, out, _ = resume(*GIVEN)
    assert status == 0
    assert "note: SOLVER" not in out
    assert rates(place) == [0.1, 0.01, 0.01, 0.001]


def test_a_length_and_stages_that_are_given(resume, place):
    status, out, _ = resume("SOLVER.EPOCHS", "5", "SOLVER.LR_DECAY_STAGES", "[1, 4]")
    assert status == 0
    note = (
        "note: SOLVER.EPOCHS was 4, is now 5; SOLVER.LR_DECAY_STAGES was [1, 3], is now [1, 4]; the learning rate of"
        " the next step was 0.01, is now 0.01"
    )
    assert note in out.splitlines()
    assert note in (place / "output/run/worklog.txt").read_text()
    assert (rates(place), length(place)) == ([0.1, 0.01, 0.01, 0.01, 0.001], 5)
    # from now on these are the run's
    status, out, _ = resume("SOLVER.EPOCHS", "6")
    note = "note: SOLVER.EPOCHS was 5, is now 6; the learning rate of the last step was 0.001, the next has 0.001"
    assert (status, note in out.splitlines()) == (0, True)
    assert (rates(place), length(place)) == ([0.1, 0.01, 0.01, 0.01, 0.001, 0.001], 6)


def test_a_run_that_is_cut_to_what_is_done_stays_so(resume, place):
    status, out, _ = resume("SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]")
    assert status == 0
    assert "SOLVER.LR_DECAY_STAGES was [1, 3], is now [1]; nothing is left to train" in out
    assert length(place) == 2
    status, out, _ = resume()
    assert (status, rates(place), length(place)) == (0, [0.1, 0.01], 2)
    assert "resumed after epoch 2 of 2" in out


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["SOLVER.EPOCHS", "1"],
            f"--resume: SOLVER.EPOCHS is 1, but {STATE} has completed 2 epochs; give at least 2, or leave it"
            " out to keep 4",
        ),
        (
            ["SOLVER.LR_DECAY_STAGES", "[3]"],
            f"--resume: SOLVER.LR_DECAY_STAGES was [1, 3], is now [3], but {STATE} has completed 2 epochs; only later"
            " stages can change, so keep [1]",
        ),
        (
            ["SOLVER.LR_DECAY_STAGES", "[1, 2]"],
            f"--resume: SOLVER.LR_DECAY_STAGES was [1, 3], is now [1, 2], but {STATE} has completed 2 epochs; only"
            " later stages can change, so keep [1]",
        ),
        (
            ["SOLVER.EPOCHS", "2"],
            "SOLVER.LR_DECAY_STAGES is [1, 3]; expected none above SOLVER.EPOCHS, 2: give earlier ones, [] for a"
            " constant rate, or SOLVER.SCHEDULE linear",
        ),
        (["SOLVER.EPOCHS", "0"], "SOLVER.EPOCHS is 0; expected at least 1 and at most 1000000"),
        (
            ["SOLVER.LR", "0.2", "SOLVER.LR_DECAY_RATE", "0.5"],
            f"--resume: {STATE} was trained with other settings (SOLVER.LR was 0.1, now 0.2; SOLVER.LR_DECAY_RATE was"
            " 0.1, now 0.5); give the earlier values, or start a new run (EXPERIMENT.NAME)",
        ),
    ],
)
def test_what_cannot_change(resume, place, overrides, expected):
    before = {path: path.read_bytes() for path in (place / "output").rglob("*") if path.is_file()}
    status, _, err = resume(*overrides)
    assert (status, err.splitlines()[0]) == (2, f"error: {expected}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


def test_the_sections_of_other_methods_are_not_compared(resume, place):
    status, out, _ = resume("DKD.ALPHA", "2.0")
    assert status == 0 and "resumed after epoch 2 of 4" in out


def test_another_precision_is_told(resume, place):
    state = checkpoint.read_checkpoint(STATE)
    assert state["precision"] == "float32"
    checkpoint.save({**state, "precision": "bfloat16 autocast"}, place / STATE)
    status, out, _ = resume()
    note = (
        "note: the run was trained in bfloat16 autocast and continues in float32, which SOLVER.AMP auto chooses on this"
    )
    assert status == 0 and note in out


def test_other_settings_are_refused_before_data_are_read(resume, place):
    shutil.rmtree("images")
    assert "SOLVER.MOMENTUM was 0.9, now 0.8" in resume("SOLVER.MOMENTUM", "0.8")[2]
    assert "DATASET.MEAN was [0.4, 0.4, 0.4], now [0.5, 0.5, 0.5]" in resume("DATASET.MEAN", "[0.5, 0.5, 0.5]")[2]
    # left to the data, which are read first
    assert "DATASET.ROOT" in resume("DATASET.MEAN", "None", "DATASET.STD", "None", "DATASET.INPUT_SIZE", "None")[2]


def test_a_launcher_that_restarts_a_run_keeps_its_length(resume, place, monkeypatch):
    """As torchrun does, without --resume, after the configuration was edited."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 2")
    assert "already holds a run" in resume(*GIVEN, how=())[2]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
    status, out, _ = resume(how=())
    assert status == 0
    assert "resumed after epoch 2 of 4" in out
    assert rates(place) == [0.1, 0.01, 0.01, 0.001]


def test_a_new_run_is_the_configurations(resume, place):
    for how in ((), ("--overwrite",)):
        status, _, err = resume("EXPERIMENT.NAME", "run" if how else "new", how=how)
        assert status == 2
        assert "SOLVER.LR_DECAY_STAGES is [5]; expected none above SOLVER.EPOCHS, 3" in err


def test_from_python_the_configuration_is_what_is_given(place):
    cfg = load_cfg("run.yaml", ["SOLVER.EPOCHS", "3", "SOLVER.LR_DECAY_STAGES", "[1, 3]"])
    trainer = build_trainer(cfg)
    assert trainer.train(resume=True)["epochs"] == 3
    assert "note: SOLVER.EPOCHS was 4, is now 3; the learning rate" in trainer.folder.worklog.read_text()
    with pytest.raises(UserError, match="SOLVER.EPOCHS is 2, but output/run/latest.pth has completed 3 epochs"):
        build_trainer(load_cfg("run.yaml", ["SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[]"])).train(resume=True)


def changed(before, now, epoch, step=0, steps=10):
    configs = [load_cfg(None, ["SOLVER.LR", "0.03", *words.split()]) for words in (before, now)]
    return schedule_changes(configs[1], to_dict(configs[0]), epoch, step, steps, "latest.pth")


@pytest.mark.parametrize(
    ("schedule", "epoch", "step", "rates"),
    [
        # 0.03 · (1 − 9 / 10), 0.03 · (1 − 9 / 27)
        ("linear", 9, 0, "the learning rate of the next step was 0.003, is now 0.02"),
        ("linear", 8, 5, "the learning rate of the next step was 0.0045, is now 0.020556"),
        # 0.015 · (1 + cos(π / 2)), 0.015 · (1 + cos(5 π / 27))
        ("cosine", 5, 0, "the learning rate of the next step was 0.015, is now 0.027532"),
        # 0.03 / 100
        ("linear", 10, 0, "the learning rate of the last step was 0.0003, the next has 0.018889"),
    ],
)
def test_rates_before_and_after(schedule, epoch, step, rates):
    schedule = f"SOLVER.SCHEDULE {schedule} SOLVER.EPOCHS"
    assert changed(f"{schedule} 10", f"{schedule} 27", epoch, step) == [
        f"note: SOLVER.EPOCHS was 10, is now 27; {rates}{OTHER_RATES}"
    ]


def test_stages_within_an_epoch_and_without_steps():
    stages = "SOLVER.EPOCHS 9 SOLVER.LR_DECAY_STAGES "
    assert changed(stages + "[2.5,5]", stages + "[2.5,6]", 2, 6) != []
    with pytest.raises(UserError, match=r"is now \[6\], but latest.pth has completed 2.6 epochs; .* so keep \[2.5\]"):
        changed(stages + "[2.5,5]", stages + "[6]", 2, 6)
    linear = "SOLVER.SCHEDULE linear " + stages
    assert "was 0.023, is now 0.023" in changed(linear + "[1]", linear + "[2]", 2, 1)[0]


def test_part_of_an_epoch_is_not_cut():
    linear = "SOLVER.SCHEDULE linear SOLVER.EPOCHS "
    with pytest.raises(
        UserError, match="SOLVER.EPOCHS is 3, but latest.pth has completed 3.5 epochs; give at least 4, or"
    ):
        changed(linear + "9", linear + "3", 3, 5)


def test_nothing_changed_or_nothing_known():
    linear = "SOLVER.SCHEDULE linear SOLVER.EPOCHS "
    assert changed(linear + "9", linear + "9", 3, 5) == []
    assert schedule_changes(load_cfg(), None, 3, 5, 10, "latest.pth") == []  # a state without a configuration


@pytest.mark.parametrize(("schedule", "expected"), [("step", [0.1, 0.1, 0.01]), ("linear", [0.075, 0.025, 0.016667])])
def test_a_finished_run_goes_on(command, tmp_path, schedule, expected):
    """`step` goes on as if the run had been longer from its start; `linear` says that it does not."""
    make_image_folder(tmp_path / "images")
    (tmp_path / "run.yaml").write_text(YAML)
    given = ["SOLVER.SCHEDULE", schedule, "SOLVER.LR_DECAY_STAGES", "[2]", "SOLVER.LR", "0.1", "SOLVER.EMA", "0.9"]
    lengths = [command("train", "--cfg", "run.yaml", *given, "SOLVER.EPOCHS", "2")]
    lengths.append(command("train", "--cfg", "run.yaml", "--resume", *given, "SOLVER.EPOCHS", "3"))
    command("train", "--cfg", "run.yaml", *given, "SOLVER.EPOCHS", "3", "EXPERIMENT.NAME", "whole")
    assert [status for status, *_ in lengths] == [0, 0]
    assert json.loads((tmp_path / "output/run/summary.json").read_text())["epochs"] == 3
    note = [line for line in lengths[1][1].splitlines() if line.startswith("note: SOLVER.EPOCHS was 2, is now 3")]
    assert note[0].endswith(OTHER_RATES) == (schedule == "linear")
    found = {name: checkpoint.read_checkpoint(tmp_path / f"output/{name}/latest.pth") for name in ("run", "whole")}
    same = differences(tmp_path / "output/run", tmp_path / "output/whole")
    assert bool([entry for entry in same if "/distiller/" in entry or "/ema/" in entry]) == (schedule == "linear")
    assert found["run"]["epoch"] == 3
    assert rates(tmp_path) == expected
