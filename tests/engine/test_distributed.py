"""Several processes: the same weights as one, the same accuracy, files written once, restarts, errors of one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from datetime import timedelta

import pytest
import torch
import yaml
from filelock import FileLock

from mdistiller import distributed
from mdistiller.engine.build import build_trainer
from mdistiller.engine.evaluation.eval_checkpoint import eval_checkpoint
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import REPO, make_image_folder
from tests.engine.data_forms import write_in_form
from tests.engine.test_trainer import settings
from tests.processes import run_python
from tests.soak.kill_and_resume import differences

pytestmark = pytest.mark.timeout(1500)  # seconds; a test starts up to six groups of processes

WORKER = REPO / "tests/engine/worker.py"
FLOAT32 = ["SFAKD", "KD"]
DOUBLE = [f"{name}-double" for name in (*FLOAT32, "CRD", "REVIEWKD", "RKD", "SP", "PKT", "MLKD", "DIST")]
DOUBLE += ["KD-double-recipe", "SFAKD-double-recipe", "KD-double-unlabeled", "SFAKD-double-unlabeled"]
DOUBLE += ["KD-double-views", "KD-double-adam"]
FORMS = {"shards": "webdataset", "tables": "datasets"}  # and the libraries that write them
FORMS = {form: library for form, library in FORMS.items() if importlib.util.find_spec(library)}
DOUBLE += [f"SFAKD-double-{form}" for form in FORMS]
BUFFERS = ("running_", "num_batches", "memory.", "_extra_state")

# ends, or stops, a process of its group once at each of some steps, or batches of evaluation (e1, e2, …)
PLUGIN = """
import os, signal
from mdistiller import distributed, distributed_errors
from mdistiller.distillers import register
from mdistiller.distillers.KD import KD

distributed_errors.REPORT_SECONDS = 120  # the main process may be slow

@register("FRAIL")
class Frail(KD):
    DEFAULTS = {**KD.DEFAULTS}
    steps = batches = 0

    def forward_train(self, image, target, **kwargs):
        self.steps += 1
        self.follow_plan(str(self.steps))
        return super().forward_train(image, target, **kwargs)

    def forward_eval(self, image):
        self.batches += 1
        self.follow_plan(f"e{self.batches}")
        return super().forward_eval(image)

    def follow_plan(self, moment):
        done = int(open("steps.txt").read()) if os.path.exists("steps.txt") else 0
        plan = os.environ.get("PLAN", "").split()
        for number, (rank, when, name) in enumerate(entry.split(":") for entry in plan):
            if number == done and int(rank) == distributed.get_rank() and when == moment:
                with open(f"steps.{rank}", "w") as file:  # renamed whole: another process may be reading
                    file.write(str(done + 1))
                os.replace(f"steps.{rank}", "steps.txt")
                os.kill(os.getpid(), getattr(signal, name))
"""


# the launcher binds a port that is free, and no one else can take it in between
MEETING = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=127.0.0.1"]


def launched(*arguments, count=2, restarts=0, folder=".", plan="", torchrun=False):
    """Run a script in several processes; return the launcher's status and what all of them said."""
    launcher = [REPO / "tests/engine/launch.py", count, restarts]
    if torchrun:
        number = (f"--nproc-per-node={count}", f"--max-restarts={restarts}")
        launcher = ["-m", "torch.distributed.run", *MEETING, *number]
    status, out, err = run_python(*launcher, *arguments, folder=folder, PLAN=plan)
    return status, out + err


def teacher_and_images(folder):
    make_image_folder(folder / "images", train=12, val=7)  # 21 validation images, in batches of 4
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, folder / "teacher.pth")


@pytest.fixture(scope="module")
def steps(request, tmp_path_factory):
    """What one and two processes have after the same 8 global batches, by method, for the methods of the chosen tests.

    The first worker of pytest-xdist that needs it computes it for all.
    """
    tests = [item.callspec.params for item in request.session.items if "steps" in getattr(item, "fixturenames", ())]
    chosen = {params["name"] for params in tests}
    names, base = [name for name in (*FLOAT32, *DOUBLE) if name in chosen], tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "steps"
    complete = folder / "complete"
    with FileLock(f"{folder}.lock"):
        if not complete.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            teacher_and_images(folder)
            for form in FORMS:
                write_in_form(form, folder / "images", folder)
            for count in (1, 2):
                status, output = launched(WORKER, folder, *names, count=count, folder=folder)
                assert status == 0, output
            complete.touch()
    return {n: [torch.load(folder / f"{n}-{c}.pth", weights_only=True) for c in (1, 2)] for n in names}


def largest(one, other, keys):
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in keys if other[key].numel())


# SFAKD's first convolution has weights of up to 0.45 and gradients that rounding changes the most (by ReLUs that flip)
TOLERANCES = [*((name, 1e-4 if name == "SFAKD" else 1e-5) for name in FLOAT32), *((name, 1e-12) for name in DOUBLE)]


@pytest.mark.parametrize(("name", "tolerance"), TOLERANCES)
def test_two_processes_train_the_weights_of_one(steps, name, tolerance):
    one, two = steps[name]
    assert two["alike"]
    keys = [key for key, value in one["state"].items() if value.numel() and not key.startswith("teacher.")]
    trained = [key for key in keys if not any(part in key for part in BUFFERS)]
    assert largest(one["first"], two["first"], [key for key in keys if key in one["first"]]) == 0
    assert largest(one["state"], one["first"], [key for key in trained if key in one["first"]]) > 1e-3
    assert largest(one["state"], two["state"], trained) < tolerance
    for key in set(keys) - set(trained):
        if not key.endswith("_extra_state"):
            torch.testing.assert_close(two["state"][key], one["state"][key], rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", ["KD-double-views"])
def test_processes_share_the_teachers_outputs(steps, name):
    assert [result["known"] for result in steps[name]] == [1.0, 1.0]


@pytest.mark.parametrize("name", DOUBLE)
def test_what_is_logged_is_of_all_images(steps, name):
    for one, two in zip(*(result["losses"] for result in steps[name])):
        for step in one:
            assert two[step] == pytest.approx(one[step], rel=1e-5)


@pytest.mark.parametrize("name", DOUBLE)
def test_re_estimated_statistics_are_of_all_images(steps, name):
    one, two = (result["statistics"] for result in steps[name])
    assert one.keys() == two.keys() >= {"student.bn1.running_mean", "student.bn1.running_var"}
    if name == "SFAKD-double":
        assert "head.projector.bottleneck.1.running_var" in one
    assert largest(one, steps[name][0]["state"], one) > 1e-3
    assert largest(one, two, one) < 1e-12
    for result in steps[name]:
        assert largest(result["state"], result["own_after"], result["state"]) == 0


@pytest.mark.parametrize("name", FLOAT32)
def test_evaluation_counts_each_image_once(steps, name):
    one, two = steps[name]
    assert one["accuracy"] == two["accuracy"]
    assert 0 < one["accuracy"]["deployed_top1"] < 100


@pytest.fixture
def run(tmp_path):
    """Train with two processes, by the command line: `run(name, *words, plan=…)` → `(status, output)`."""
    teacher_and_images(tmp_path)
    (tmp_path / "frail.py").write_text(PLUGIN)
    settings = {
        "PLUGINS": ["frail.py"],
        "DATASET": {"TYPE": "imagefolder", "ROOT": "images", "INPUT_SIZE": 16, "NUM_WORKERS": 0},
        "DISTILLER": {
            "TYPE": "FRAIL",
            "STUDENT": "resnet8",
            "TEACHER": "resnet14",
            "TEACHER_WEIGHTS": "teacher.pth",
        },
        "SOLVER": {"EPOCHS": 3, "BATCH_SIZE": 9, "LR": 0.02, "AMP": "off", "LR_DECAY_STAGES": []},
        "LOG": {"WANDB": False, "TENSORBOARD_FREQ": 1},
    }
    settings["SOLVER"]["CHECKPOINT_EVERY"] = "3 steps"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))

    def call(name, *words, **options):
        script = [REPO / "tools/train.py", "--cfg", "run.yaml", "EXPERIMENT.NAME", name, *words]
        (tmp_path / "steps.txt").unlink(missing_ok=True)
        return launched(*script, folder=tmp_path, **options)

    return call


def test_interrupted_runs_end_like_an_undisturbed_one(run, tmp_path):
    status, output = run("whole", torchrun=True)
    assert status == 0, output
    whole = tmp_path / "output/whole"
    rows = [json.loads(line)["epoch"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3]
    assert output.count("epoch   1/3") == (whole / "worklog.txt").read_text().count("epoch   1/3") == 1
    assert json.loads((whole / "summary.json").read_text())["processes"] == 2

    # killed before anything was saved, then after step 6, of which 2 are of the second epoch
    status, output = run("killed", restarts=2, plan="1:2:SIGKILL 0:7:SIGKILL")
    assert status == 0, output
    assert "resumed after epoch 1 of 3, step 2 of 4 in the next" in output
    assert "]: Traceback" not in output
    assert (tmp_path / "steps.txt").read_text() == "2"
    assert differences(whole, tmp_path / "output/killed") == []

    status, output = run("stopped", plan="1:7:SIGTERM")  # to one alone
    assert status != 0
    assert "stopped by SIGTERM at epoch 2, step 3 of 4; saved, continue with --resume" in output
    assert "]: Traceback" not in output  # of a worker; the launcher shows one of its own
    shutil.copytree(tmp_path / "output/stopped", tmp_path / "output/alone")
    status, output = run("stopped", "--resume")
    assert status == 0, output
    assert differences(whole, tmp_path / "output/stopped") == []

    status, output = run("alone", "--resume", count=1)
    assert status == 0, output
    assert "resumed after epoch 1 of 3, step 3 of 4 in the next" in output
    assert json.loads((tmp_path / "output/alone/summary.json").read_text())["processes"] == 1


def test_statistics_that_differ_are_kept_apart_and_evaluated_as_one(run, tmp_path, monkeypatch):
    own = ["SOLVER.SYNC_BN", "False", "DATASET.TEST.BATCH_SIZE", "4"]
    status, output = run("whole", *own)
    assert status == 0, output
    state = torch.load(tmp_path / "output/whole/best.pth", weights_only=True)
    assert state["statistics"] == [{}, {}]

    _, output = run("part", *own, plan="1:e2:SIGTERM")  # in the second of its three batches of evaluation
    assert "stopped by SIGTERM at epoch 1, step 4 of 4; saved, continue with --resume" in output
    _, output = run("part", *own, "--resume", plan="0:2:SIGTERM")
    assert "stopped by SIGTERM at epoch 2, step 2 of 4; saved, continue with --resume" in output
    first, second = torch.load(tmp_path / "output/part/latest.pth", weights_only=True)["statistics"]
    assert first.keys() == second.keys() >= {"student.bn1.running_mean", "student.bn1.running_var"}
    assert not torch.equal(first["student.bn1.running_mean"], second["student.bn1.running_mean"])
    shutil.copytree(tmp_path / "output/part", tmp_path / "output/alone")
    status, output = run("part", *own, "--resume")
    assert status == 0, output
    assert differences(tmp_path / "output/whole", tmp_path / "output/part") == []
    status, output = run("alone", *own, "--resume", count=1)
    assert status == 0, output

    monkeypatch.chdir(tmp_path)
    report = eval_checkpoint("resnet8", "output/whole/student_latest.pth").splitlines()
    deployed, recorded = (line.split()[1:5] for line in report if line.startswith(("deployed", "recorded")))
    assert deployed == recorded


def test_errors_are_told_once(run):
    status, output = run("wrong", "SOLVER.BATCH_SIZE", "3", "SOLVER.TRAINER", "dot")
    assert status != 0
    lines = sorted(line for line in output.splitlines() if line.startswith("error:"))
    assert lines == [
        "error: SOLVER.BATCH_SIZE is 3; expected at least 4,"
        " because BatchNorm cannot train on one image in each of 2 processes",
        "error: SOLVER.TRAINER dot trains in one process; start one, or use SOLVER.TRAINER base",
    ]

    status, output = run("wrong", "DATASET.ROOT", "nowhere")  # which the first process looks for before the other
    assert status != 0
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert line.startswith("error: DATASET.ROOT nowhere is not a folder; expected ")


def test_a_restart_takes_over_no_run_of_another(run, tmp_path):
    folder = tmp_path / "output/other"
    folder.mkdir(parents=True)
    (folder / "latest.pth").write_text("of another")
    status, output = run("other", restarts=1)
    assert status != 0
    assert output.count("other already holds a run") == 2, output  # at both starts
    assert (folder / "latest.pth").read_text() == "of another"


def test_shares_are_consecutive_and_nearly_equal(monkeypatch):
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        shares.append(distributed.local_slice(slice(10, 20)))
    assert [(part.start, part.stop) for part in shares] == [(10, 12), (12, 15), (15, 17), (17, 20)]


def test_what_differs_between_processes_is_refused(monkeypatch, image_folder):
    # of what is compared, the settings are dictionaries
    monkeypatch.setattr(
        distributed, "all_gather", lambda value: [value, value, value if isinstance(value, dict) else "9 images", value]
    )
    with pytest.raises(UserError, match="^the data set is not the same for all processes: 36 images .* 9 images for"):
        build_trainer(settings(image_folder))
    monkeypatch.setattr(distributed, "all_gather", lambda value: [value, value])
    distributed.check_same("the data set", "36 images")


def test_settings_that_differ_between_processes_are_refused(monkeypatch, image_folder):
    def all_of(settings):
        return [settings, {**settings, "LOG.PREFIX": "elsewhere"}, {**settings, "SOLVER.LR": 3.0}]

    monkeypatch.setattr(distributed, "all_gather", all_of)
    line = r"^the processes have different settings \(SOLVER.LR is 0.02 for process 0, 3.0 for process 2\);"
    with pytest.raises(UserError, match=line):
        build_trainer(settings(image_folder))


def test_a_meeting_that_does_not_come_about_is_told(monkeypatch):
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])  # where nobody listens
        environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**environment, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        line = f"process 1 of 2 could not join the process group at 127.0.0.1:{port} "
        with pytest.raises(UserError, match=line), distributed.process_group():
            pass
    assert distributed.get_world_size() == 1


def test_one_process_is_no_group():
    tensor = torch.ones(2, requires_grad=True)
    with distributed.process_group():
        assert (distributed.get_rank(), distributed.get_world_size(), distributed.is_main_process()) == (0, 1, True)
        assert distributed.gather_with_grad(tensor)[0] is tensor
        assert distributed.all_reduce(tensor) is tensor
        assert distributed.run_on_main(lambda: "done") == "done"
