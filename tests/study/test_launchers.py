"""Runs in processes of their own: on this machine, and as jobs of submitit."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mdistiller.engine.run.folder import RunFolder
from mdistiller.errors import UserError
from mdistiller.study.grid import read_study
from mdistiller.study.job import Job
from mdistiller.study.launchers import ClusterJob, ClusterLauncher, LocalLauncher, visible_devices
from mdistiller.study.runner import run_study
from tests.processes import REPO
from tests.study.test_runner import rows

pytestmark = pytest.mark.timeout(900)  # seconds; a study starts several processes, one after the other


@pytest.fixture
def one_method(place):
    """The study with KD alone and one seed: three runs."""
    text = (place / "small.yaml").read_text().replace("  SFAKD: {DISTILLER: {TYPE: SFAKD}}\n", "")
    (place / "small.yaml").write_text(text.replace("SEEDS: [0, 1]", "SEEDS: [0]"))
    return place


def test_a_killed_study_ends_like_an_undisturbed_one(one_method, command, started, launcher):
    """Killed three times with two runs at a time, and undisturbed with all runs in this process."""
    longer = ["small.yaml", "SOLVER.EPOCHS", "8", "SOLVER.CHECKPOINT_EVERY", "1 steps"]
    for run, epoch in (("resnet14/seed0", 2), ("small/student_alone/seed0", 4), ("small/KD/seed0", 2)):
        log = Path("killed/logs") / f"{run}.txt"
        with started(sys.executable, REPO / "tools/study.py", *longer, "--output", "killed", "--jobs", "2") as study:
            while not (log.is_file() and f"epoch   {epoch}/8" in log.read_text()) and study.process.poll() is None:
                time.sleep(0.05)
            study.send_signal(signal.SIGKILL)
            assert study.process.wait() == -signal.SIGKILL
    status, out, err = command("study", *longer, "--output", "killed")
    assert (status, err) == (0, ""), out
    run_study(read_study(longer[0], longer[1:]), Path("whole"), launcher)
    assert rows(Path("killed")) == rows(Path("whole"))


@pytest.fixture
def no_teacher(one_method):
    """Two runs of the student alone."""
    text = (one_method / "small.yaml").read_text().replace("TEACHER: {}\n", "")
    (one_method / "small.yaml").write_text(text.replace("  KD: {DISTILLER: {TYPE: KD}}\n", "  again: {}\n"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_submitit(no_teacher, command, launcher):
    options = ["--cluster", "local", "--cluster-option", "timeout_min=5"]
    status, out, err = command("study", "small.yaml", *options, "--output", "jobs")
    assert (status, err) == (0, ""), out
    assert {row["state"] for row in rows(Path("jobs"))} == {"finished"}
    assert any(Path("jobs/submitit").iterdir())
    run_study(read_study("small.yaml"), Path("here"), launcher)
    assert rows(Path("jobs")) == rows(Path("here"))


def test_a_failed_process(one_method, command):
    (one_method / "small.yaml").write_text((one_method / "small.yaml").read_text().replace("METHODS:", "X:\nMETHODS:"))
    status, _, err = command("study", "small.yaml")
    assert (status, err.count("\n")) == (2, 1) and "unknown key X" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["small.yaml", "--jobs", "0"], "--jobs is 0; expected at least 1"),
        (["small.yaml", "--cluster-option", "a=1"], "--cluster-option needs --cluster"),
        (["small.yaml", "--cluster", "debug", "--cluster-option", "a"], "--cluster-option is 'a'; expected KEY=VALUE"),
        (["small.yaml", "--cluster", "debug", "--cluster-option", "a=["], "which is not valid YAML"),
        (["small.yaml", "--cluster", "debug", "--cluster-option", "tme=3"], "--cluster debug: "),
        (["small.yaml", "--cluster", "slurm"], "--cluster slurm: "),
        (["gone.yaml"], "config gone.yaml cannot be read"),
        (["small.yaml", "SOLVER.LR"], "override 'SOLVER.LR' has no value"),
        (["small.yaml", "--output", "small.yaml"], "small.yaml"),
    ],
)
def test_bad_command_lines(one_method, command, arguments, line):
    status, _, err = command("study", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert line in err


def test_each_process_gets_a_gpu_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_devices() == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_devices() == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert visible_devices() == [{}]


def test_a_process_gets_the_gpu_that_is_free(monkeypatch, tmp_path):
    """Of two GPUs, one is busy with a long run while several short ones follow each other."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    end_of_the_long_run, devices = threading.Event(), {}

    def run(job, device, started):
        devices[job] = device["CUDA_VISIBLE_DEVICES"]
        if job == "long":
            assert end_of_the_long_run.wait(60)
        return ""

    monkeypatch.setattr("mdistiller.study.launchers.run_job", run)
    launcher = LocalLauncher(2)
    long = launcher.submit("long")
    for job in ("a", "b", "c"):
        assert launcher.submit(job).result() == ""
    assert {devices[job] for job in ("a", "b", "c")} == {"0", "1"} - {devices["long"]}
    end_of_the_long_run.set()
    assert long.result() == ""
    launcher.stop()


def test_a_process_that_starts_while_the_study_ends(monkeypatch):
    """The interruption comes between the submission of a run and the start of its process."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    stopped = threading.Event()

    def run(job, device, started):
        assert stopped.wait(60)
        started(process)
        return str(process.wait(60))

    monkeypatch.setattr("mdistiller.study.launchers.run_job", run)
    launcher = LocalLauncher(1)
    result = launcher.submit("late")
    shutdown = launcher._pool.shutdown
    monkeypatch.setattr(launcher._pool, "shutdown", lambda: (stopped.set(), shutdown()))
    launcher.stop()
    assert result.result() == "1"  # its input ended


def test_a_job_that_a_cluster_ends_is_queued_again():
    submitit = pytest.importorskip("submitit")
    run, job = ClusterJob(), Job("name", ("--cfg", "x"), RunFolder("runs", "run"), Path("log"), Path(), {})
    again = run.checkpoint(job)
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert (again.function, again.args) == (run, (job,))


def test_the_command_of_a_run_in_a_folder_with_a_space():
    job = Job("name", ("--cfg", "my study/x.yaml"), RunFolder("my study", "run"), Path("log"), Path(), {"A": "b c"})
    assert job.shell() == "A='b c' python3 tools/train.py --cfg 'my study/x.yaml'"


def test_a_study_in_use(one_method):
    from mdistiller.engine.run.lock import locked

    with locked(Path("out")), pytest.raises(
        UserError, match=r"\(this process\); wait for it, or give another --output"
    ):
        run_study(read_study("small.yaml"), Path("out"), LocalLauncher(1))


def test_without_submitit(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="--cluster needs submitit; run: pip install submitit"):
        ClusterLauncher("slurm", tmp_path, {}, 1)
