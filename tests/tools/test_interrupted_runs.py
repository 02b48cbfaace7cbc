"""Runs in processes of their own, killed and stopped; the long form is tests/soak/kill_and_resume.py."""

import signal
import sys
from pathlib import Path

import pytest

from tests.processes import REPO
from tests.soak.kill_and_resume import Kill, differences, train
from tests.soak.long_run import verdict

pytestmark = pytest.mark.timeout(900)  # seconds; a test starts up to three processes, one after the other

OUTPUT = Path("output")


@pytest.fixture
def arguments(image_folder, tmp_path):
    """What every run here is started with, except for its name."""
    (tmp_path / "run.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, NUM_WORKERS: 0}}\n"
        "DISTILLER: {TYPE: NONE, STUDENT: resnet8}\n"
        "SOLVER: {EPOCHS: 3, BATCH_SIZE: 8, LR: 0.05, CHECKPOINT_EVERY: 2 steps, AMP: off, LR_DECAY_STAGES: []}\n"
        "LOG: {WANDB: False, TENSORBOARD_FREQ: 1}\n"
    )
    return ["--cfg", "run.yaml"]


def test_a_killed_run_ends_like_one_that_was_not(arguments, command):
    assert command("train", *arguments, "EXPERIMENT.NAME", "whole")[0] == 0
    part = [*arguments, "EXPERIMENT.NAME", "part"]
    # in a save of the second epoch, then at once in the step after the state that is left
    for kill, how in ((Kill("save", 9, 0.0), []), (Kill("step", 1, 0.0), ["--resume"])):
        status, output = train([*part, *how], kill)
        assert (status, "killed in: " in output) == (-signal.SIGKILL, True)
    assert command("train", *part, "--resume")[0] == 0
    assert differences(OUTPUT / "whole", OUTPUT / "part") == []
    assert not list((OUTPUT / "part").glob("*.partial"))


def test_sigterm_ends_a_run_with_a_status_of_its_own(arguments, command, started):
    own = ("SOLVER.EPOCHS", "100000", "EXPERIMENT.NAME", "t")
    process = started(sys.executable, REPO / "tools/train.py", *arguments, *own)
    process.wait_for("epoch   2")
    # while it runs, no other may touch its folder
    status, _, err = command("train", *arguments, "EXPERIMENT.NAME", "t", "--overwrite")
    assert status == 2
    assert f"a run is writing to output/t (process {process.pid} on " in err
    process.send_signal(signal.SIGTERM)
    status, out, err = process.finish()
    assert status == 75
    assert "Traceback" not in err
    assert "SIGTERM: finishing the step and saving" in err
    assert out.splitlines()[-1].startswith("stopped by SIGTERM at epoch ")
    assert out.splitlines()[-1].endswith("; saved, continue with --resume")
    epoch = len((OUTPUT / "t/metrics.jsonl").read_text().splitlines())
    status, out, _ = command("train", *arguments, "EXPERIMENT.NAME", "t", "SOLVER.EPOCHS", str(epoch + 1), "--resume")
    assert status == 0
    assert f"resumed after epoch {epoch} of {epoch + 1}" in out


def test_a_comparison_that_ctrl_c_ends_has_nothing_to_resume(tmp_path, started):
    # more epochs than any machine does before it reads the signal
    arguments = "train --methods NONE --epochs 100000 DATASET.TRAIN_FRACTION 0.02 SOLVER.SCHEDULE linear"
    process = started(sys.executable, REPO / "tools/compare_methods.py", *arguments.split(), TMPDIR=str(tmp_path))
    process.wait_for("epoch   2")
    process.send_signal(signal.SIGINT)
    status, _, err = process.finish()
    assert status == 130
    assert err.splitlines()[-1] == "interrupted; start again"
    assert "--resume" not in err
    assert "Traceback" not in err
    # ONNX Runtime, which some versions of PyTorch import, leaves a file of its own
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_verdict_of_a_long_run():
    flat = [(500.0 + n % 3, 9) for n in range(100)]
    assert verdict(flat)[0]
    assert not verdict([(500.0 + n / 2, 9) for n in range(100)])[0]
    assert not verdict([(500.0, 9 + n // 50) for n in range(100)])[0]
    assert verdict([(100.0 + 40 * min(n, 15), 9) for n in range(100)])[0]  # warm-up
    assert "flat" in verdict(flat)[1]
