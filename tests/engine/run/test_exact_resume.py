"""An interrupted and resumed run ends bit for bit like an uninterrupted one."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch

from mdistiller.distillers import Distiller
from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.engine.log.logger import MACHINE_FIELDS
from mdistiller.engine.log.tensorboard import records
from mdistiller.engine.run.signals import STATUS, RunStopped
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import with_distiller
from tests.engine.test_trainer import rows, settings
from tests.soak.kill_and_resume import differences

STEPS = 5  # of an epoch: 36 images, batches of 8, the last of 4


class Crash(Exception):
    pass


@pytest.fixture
def folder(image_folder):
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, "teacher.pth")
    return image_folder


def built(folder, name, method="KD", trainer="base", every="2 steps", epochs=3, wrap=None, more=()):
    own = [
        "SOLVER.TRAINER",
        trainer,
        "SOLVER.CHECKPOINT_EVERY",
        every,
        "LOG.TENSORBOARD_FREQ",
        "1",
        "LOG.WANDB",
        "False",
    ]
    made = build_trainer(settings(folder, *own, *more, name=name, method=method, epochs=epochs))
    if wrap is not None:
        return with_distiller(made, wrap(made.distiller.student))
    return made


def before_step(trainer, number, action):
    """Call `action` before the trainer's step `number`, counted from 1."""
    step, calls = trainer.train_step, []

    def counted(*args):
        calls.append(args)
        if len(calls) == number:
            action()
        return step(*args)

    trainer.train_step = counted


def crash():
    raise Crash


def spoil_random_numbers():
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def crashed_and_resumed(whole_at, make):
    """Train `make("part")` until just before step `whole_at`, then a second trainer of that name to the end."""
    part = make("part")
    before_step(part, whole_at, crash)
    with pytest.raises(Crash):
        part.train()
    resumed = make("part")
    spoil_random_numbers()
    resumed.train(resume=True)
    return resumed


METHODS = [
    *(("NONE", "base"), ("KD", "base"), ("SFAKD", "base"), ("CTKD", "base"), ("VID", "base"), ("OFD", "base")),
    *(("REVIEWKD", "base"), ("SIMKD", "base"), ("CRD", "base"), ("KD", "dot"), ("CRD", "crd_dot")),
]


@pytest.mark.parametrize(("method", "trainer"), METHODS)
def test_within_an_epoch(folder, method, trainer):
    epochs = 3 if method == "CRD" else 2  # the one with the most state goes on for another epoch

    def make(name):
        return built(folder, name, method, trainer, epochs=epochs, more=["CRD.NCE.K", "16"])

    whole = make("whole")
    whole.train()
    # saved after steps 6 and 8, that is 1 and 3 of the second epoch; step 9 is done again
    resumed = crashed_and_resumed(STEPS + 5, make)
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert f"resumed after epoch 1 of {epochs}, step 3 of 5 in the next" in resumed.folder.worklog.read_text()
    assert (resumed.progress.best, resumed.progress.last, resumed.progress.images) == (
        whole.progress.best,
        whole.progress.last,
        whole.progress.images,
    )


@pytest.mark.parametrize("trainer", ["base", "dot"])
def test_with_parameters_that_take_no_weight_decay(folder, trainer):
    options = {"DECAY_FILTER": "False", "FUSION": "fixed", "WARMUP_EPOCHS": "2.5", "CE_WEIGHT": "1", "KD_WEIGHT": "1"}
    more = [word for key, value in options.items() for word in (f"SFAKD.{key}", value)]

    def make(name):
        return built(folder, name, "SFAKD", trainer, more=more)

    whole = make("whole")
    assert {group["weight_decay"] for group in whole.step.optimizer.param_groups[:2]} == {1e-4, 0.0}
    whole.train()
    resumed = crashed_and_resumed(STEPS + 5, make)
    assert differences(whole.folder.path, resumed.folder.path) == []


def test_with_fewer_evaluations(folder):
    def make(name):
        more = ["SOLVER.EVAL_EVERY", "2", "SOLVER.EMA", "0.9", "SOLVER.PRECISE_BN", "2"]
        return built(folder, name, "SFAKD", epochs=4, more=more)

    whole = make("whole")
    whole.train()
    for crash_at in (STEPS - 1, STEPS + 5, 2 * STEPS + 4):
        resumed = crashed_and_resumed(crash_at, lambda name, n=crash_at: make(f"{name}{n}"))
        assert differences(whole.folder.path, resumed.folder.path) == []


def test_differences_are_seen(folder):
    runs = [built(folder, name, epochs=1) for name in ("one", "two")]
    for run in runs:
        run.train()
    paths = [run.folder.path for run in runs]
    assert differences(*paths) == []
    state = checkpoint.read_checkpoint(runs[1].folder.latest)
    state["distiller"]["student.fc.weight"][0, 0] += 1e-6
    checkpoint.save(state, runs[1].folder.latest)
    runs[1].folder.metrics.write_text(runs[1].folder.metrics.read_text().replace('"epoch": 1', '"epoch": 2'))
    (events,) = (paths[1] / "train.events").iterdir()
    (paths[1] / "train.events/copy.tfevents").write_bytes(events.read_bytes())
    assert differences(*paths) == ["latest.pth: /distiller/student.fc.weight", "metrics.jsonl", "train.events"]


class Noisy(Distiller):
    """Draws from every generator there is, in each step."""

    needs_teacher = False

    def __init__(self, student):
        super().__init__(student)

    def forward_train(self, image, target, **kwargs):
        logits = self.student(image)[0]
        noise = random.random() + np.random.rand() + torch.rand(())
        return logits, {"loss_ce": torch.nn.functional.cross_entropy(logits, target) * noise}


@pytest.mark.parametrize("every", ["", "1 steps", "0.0000001 minutes"])
def test_the_random_generators_go_on(folder, every):
    def make(name):
        return built(folder, name, "NONE", "base", every, wrap=Noisy)

    whole = make("whole")
    whole.train()
    resumed = crashed_and_resumed(STEPS + 4, make)
    assert differences(whole.folder.path, resumed.folder.path) == []
    at = "" if every == "" else ", step 3 of 5 in the next"
    assert f"resumed after epoch 1 of 3{at}\n" in resumed.folder.worklog.read_text()


def test_when_a_state_is_saved_changes_nothing_else(folder):
    runs = [built(folder, f"run{number}", every=every) for number, every in enumerate(("", "3 steps", "0.001 minutes"))]
    for run in runs:
        run.train()
    for run in runs[1:]:
        assert differences(runs[0].folder.path, run.folder.path) == []


@pytest.mark.parametrize(
    ("number", "at"),
    [(signal.SIGTERM, 1), (signal.SIGTERM, STEPS), (signal.SIGTERM, 2 * STEPS + 3), (signal.SIGINT, STEPS + 1)],
)
def test_a_signal_finishes_the_step_and_saves(folder, capfd, number, at):
    whole = built(folder, "whole", every="")
    whole.train()
    part = built(folder, "part", every="")
    before = signal.getsignal(number)
    before_step(part, at, lambda: os.kill(os.getpid(), number))
    with pytest.raises(RunStopped) as stopped:
        part.train()
    assert stopped.value.code == STATUS == 75
    assert signal.getsignal(number) == before
    epoch, step = divmod(at - 1, STEPS)
    line = f"stopped by {number.name} at epoch {epoch + 1}, step {step + 1} of 5; saved, continue with --resume"
    out, err = capfd.readouterr()
    assert line in out
    assert f"{number.name}: finishing the step and saving" in err
    assert part.folder.worklog.read_text().count("stopped") == 1
    state = checkpoint.read_checkpoint(part.folder.latest)
    assert (state["epoch"], state["step"]) == (epoch, step + 1)
    resumed = built(folder, "part", every="")
    spoil_random_numbers()
    resumed.train(resume=True)
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert (resumed.progress.images, len(rows(resumed))) == (whole.progress.images, 3)


def test_a_second_sigint_stops_at_once(folder):
    part = built(folder, "part", every="")

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # more of these are patience
        os.kill(os.getpid(), signal.SIGINT)

    before_step(part, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        part.train()
    assert not part.folder.latest.exists()
    assert "stopped: KeyboardInterrupt" in part.folder.worklog.read_text()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_signal_in_an_evaluation(folder, batch):
    """It is left, and made again from its beginning."""
    whole = built(folder, "whole", every="")
    whole.train()
    part = built(folder, "part", every="")
    forward, calls = part.distiller.forward_eval, []

    def counted(image):
        calls.append(image)
        if len(calls) == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(image)

    part.distiller.forward_eval = counted
    with pytest.raises(RunStopped):
        part.train()
    assert len(calls) == batch
    state = checkpoint.read_checkpoint(part.folder.latest)
    assert (state["epoch"], state["step"], state["images"]) == (0, STEPS, 0)
    resumed = built(folder, "part", every="")
    resumed.train(resume=True)
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert resumed.progress.images == whole.progress.images


def test_a_state_after_the_last_step_of_an_epoch(folder):
    whole = built(folder, "whole", every=f"{STEPS} steps", more=["SOLVER.SCHEDULE", "linear"])
    whole.train()
    part = built(folder, "part", every=f"{STEPS} steps", more=["SOLVER.SCHEDULE", "linear"])
    part.validate = crash
    with pytest.raises(Crash):
        part.train()
    resumed = built(folder, "part", every=f"{STEPS} steps", more=["SOLVER.SCHEDULE", "linear"])
    resumed.train(resume=True)
    assert f"resumed after epoch 0 of 3, step {STEPS} of {STEPS}" in resumed.folder.worklog.read_text()
    assert differences(whole.folder.path, resumed.folder.path) == []


def test_a_signal_before_the_first_step(folder):
    whole = built(folder, "whole")
    whole.train()
    part = built(folder, "part")
    announce = part._announce

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        announce(*args)

    part._announce = signalled
    with pytest.raises(RunStopped):
        part.train()
    resumed = built(folder, "part")
    spoil_random_numbers()
    resumed.train(resume=True)
    assert differences(whole.folder.path, resumed.folder.path) == []


def test_a_signal_while_saving_lets_it_finish(folder, monkeypatch):
    part = built(folder, "part", every="2 steps")
    save, calls = checkpoint.save, []

    def signalled(content, path, previous=None):
        calls.append(path.name)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        save(content, path, previous)

    monkeypatch.setattr("mdistiller.engine.run.folder.save", signalled)
    with pytest.raises(RunStopped):
        part.train()
    assert calls == ["latest.pth", "latest.pth"]  # at the signal, and where the run ends
    assert not list(part.folder.path.glob("*.partial"))
    assert checkpoint.read_checkpoint(part.folder.latest)["step"] == 2


def test_resuming_a_finished_run_changes_nothing(folder):
    run = built(folder, "run", epochs=2)
    summary = run.train()
    names = ("latest.pth", "student_best.pth", "student_latest.pth", "metrics.jsonl")
    before = {name: (run.folder.path / name).read_bytes() for name in names}
    again = built(folder, "run", epochs=2).train(resume=True)
    assert {name: (run.folder.path / name).read_bytes() for name in names} == before
    for result in (again, summary):
        assert result.pop("peak_memory_mib") > 0  # the process's own, which lives on from the first run to the second
    assert again == summary
    more = built(folder, "run", epochs=3)
    more.train(resume=True)
    assert [row["epoch"] for row in rows(more)] == [1, 2, 3]


def test_a_signal_after_the_last_step_does_not_hide_that_the_run_is_done(folder, monkeypatch):
    part = built(folder, "part", epochs=1, every="")
    save = part.save

    def signalled():
        os.kill(os.getpid(), signal.SIGTERM)
        save()

    part.save = signalled
    assert part.train()["epochs"] == 1


def test_numbers_of_after_the_state_are_written_once(folder):
    """Two crashes, so that rows and events of steps that are done again lie in several files."""

    def make(name):
        return built(folder, name, every="2 steps")

    whole = make("whole")
    whole.train()
    part = make("part")
    before_step(part, 2 * STEPS, crash)  # saved at 8
    with pytest.raises(Crash):
        part.train()
    with part.folder.metrics.open("a") as log:
        log.write(json.dumps({"epoch": 2, "loss": 0.0}) + '\n{"epoch": 3, "lo')
    (events,) = part.folder.tensorboard.iterdir()
    with events.open("ab") as file:
        file.write(events.read_bytes()[:60])  # torn
    again = make("part")
    before_step(again, 3, crash)
    with pytest.raises(Crash):
        again.train(resume=True)
    last = make("part")
    last.train(resume=True)
    assert len(list(last.folder.tensorboard.iterdir())) == 3
    assert differences(whole.folder.path, last.folder.path) == []
    seen = [event.step for path in last.folder.tensorboard.iterdir() for _, event in records(path.read_bytes())]
    assert max(seen) == 3 * STEPS


def test_wall_clock_goes_on(folder):
    part = built(folder, "part", every="1 steps")
    before_step(part, 4, crash)
    with pytest.raises(Crash):
        part.train()
    state = checkpoint.read_checkpoint(part.folder.latest)
    assert state["epoch_seconds"] > 0
    state["epoch_seconds"] = 1e6  # longer than any machine takes for these epochs
    checkpoint.save(state, part.folder.latest)
    resumed = built(folder, "part")
    resumed.train(resume=True)
    assert 1e6 < rows(resumed)[0]["seconds"] < 1.5e6
    assert rows(resumed)[1]["seconds"] < 5e5
    assert 1e6 < resumed.progress.total_seconds < 1.5e6
    assert set(MACHINE_FIELDS) <= set(rows(resumed)[0])


def test_evaluation_is_no_training_time(folder, monkeypatch):
    """A run that is stopped in an evaluation does it again. The time before it counts as it is."""
    part = built(folder, "part", every="1 steps")
    clock = [0.0]
    monkeypatch.setattr("mdistiller.engine.trainer.time.perf_counter", lambda: clock[0])

    def stopped():
        clock[0] += 1e6
        raise RunStopped(signal.SIGTERM)

    before_step(part, STEPS, lambda: clock.__setitem__(0, 7.0))
    part.evaluation = stopped
    with pytest.raises(RunStopped):
        part.train()
    state = checkpoint.read_checkpoint(part.folder.latest)
    assert (state["step"], state["epoch_seconds"]) == (STEPS, 7.0)
    resumed = built(folder, "part", epochs=1)
    resumed.train(resume=True)
    assert rows(resumed)[0]["seconds"] == 7.0
    assert resumed.progress.total_seconds == 7.0


def test_versions_are_those_that_trained(folder, monkeypatch):
    def named(commit):
        monkeypatch.setattr("mdistiller.engine.run.environment._commit", lambda: {"commit": commit})

    def summary(**options):
        made = built(folder, "part", **options)
        return made.train(resume=made.folder.latest.exists())

    named("first")
    assert summary(epochs=1)["versions"]["commit"] == "first"
    named("later")
    again = summary(epochs=1)  # trains nothing
    assert again["versions"]["commit"] == "first" and "earlier_machines" not in again
    longer = summary(epochs=2, more=("SOLVER.EPOCHS", "2"))
    assert longer["versions"]["commit"] == "later"
    assert [machine["versions"]["commit"] for machine in longer["earlier_machines"]] == ["first"]
    assert [(part["precision"], part["processes"]) for part in longer["earlier_machines"]] == [("float32", 1)]


def test_resume_with_other_data_is_refused(folder):
    known = [*("DATASET.MEAN", "[0.4, 0.4, 0.4]"), *("DATASET.STD", "[0.2, 0.2, 0.2]")]
    built(folder, "part", epochs=1, more=known).train()
    for path in sorted((folder / "train").rglob("*.png"))[::3]:
        path.unlink()
    with pytest.raises(UserError, match="the number of training images was 36, now 24"):
        built(folder, "part", epochs=2, more=known).train(resume=True)


def test_a_damaged_row_is_named(folder):
    run = built(folder, "run", epochs=2)
    run.train()
    lines = run.folder.metrics.read_text().splitlines(keepends=True)
    run.folder.metrics.write_text(lines[0].replace("epoch", "\x00", 1) + lines[1])
    with pytest.raises(UserError, match=r"line 1 of .*metrics.jsonl is not a row of a run"):
        built(folder, "run", epochs=3).train(resume=True)
