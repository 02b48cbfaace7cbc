"""Running a study: what runs, what is skipped, what is reported, and the files it leaves."""

import csv
import json
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from mdistiller.engine.run.lock import locked
from mdistiller.errors import UserError
from mdistiller.study.dry_run import dry_run
from mdistiller.study.estimate import total_seconds
from mdistiller.study.grid import read_study
from mdistiller.study.runner import run_study
from mdistiller.study.tables import MACHINE_COLUMNS

OUT = Path("out")


def rows(folder=OUT):
    """The rows of results.csv without what depends on the machine."""
    with (folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MACHINE_COLUMNS} for row in csv.DictReader(file)]


def states(folder=OUT):
    return {f"{row['method']} {row['seed']}": row["state"] for row in rows(folder)}


def test_a_study_from_start_to_end(place, launcher, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            bars.append((options["initial"], options["total"]))
            super().__init__(**options)

    monkeypatch.setattr("mdistiller.study.runner.tqdm", Bar)
    study = read_study("small.yaml")
    summaries = run_study(study, OUT, launcher)
    assert [job.name for job in launcher.jobs] == [cell.name for cell in study.all_cells()]
    assert set(states().values()) == {"finished"} and len(states()) == 7
    teacher = json.loads((OUT / "runs/resnet14/seed0/summary.json").read_text())
    kd = summaries["small/KD/seed1"]
    assert kd["teacher_accuracy"]["deployed_top1"] == teacher["last"]["deployed_top1"]
    assert (kd["seed"], kd["settings"]["KD.TEMPERATURE"], "SOLVER.LR" in kd["settings"]) == (1, 4.0, True)
    assert (OUT / "teacher_cache").is_dir()
    text = (OUT / "results.md").read_text()
    assert text.count("| 2 |") == 3 and "Unfinished" not in text
    assert "- No conclusion is drawn from comparisons over fewer than 3 seeds." in text
    last = [summaries[f"small/KD/seed{seed}"]["last"]["deployed_top1"] for seed in (0, 1)]
    assert f"| {last[0]:.2f}, {last[1]:.2f} |" in text  # each seed
    assert f"Teacher: resnet14 {teacher['last']['deployed_top1']:.2f} (weights {kd['origin']['teacher'][:6]})." in text
    assert len({(row["method"], row["settings"]) for row in rows()}) == 4  # seeds have the same settings
    assert (OUT / "results.png").read_bytes().startswith(b"\x89PNG")

    before = {path: path.read_bytes() for path in OUT.glob("results.*")}
    launcher.jobs.clear()
    run_study(study, OUT, launcher)  # nothing is left to do
    assert launcher.jobs == []
    assert {path: path.read_bytes() for path in before} == before

    # on another machine: the summaries are enough for the tables
    shutil.copy(OUT / "summaries.jsonl", "elsewhere.jsonl")
    Path("small.yaml").write_text(Path("small.yaml").read_text() + "SUMMARIES: [none.jsonl, elsewhere.jsonl]\n")
    run_study(read_study("small.yaml"), Path("again"), launcher)
    assert launcher.jobs == []
    assert rows(Path("again")) == rows()
    # and one more seed needs the teacher's weights again
    more = Path("small.yaml").read_text().replace("SEEDS: [0, 1]", "SEEDS: [0, 1, 2]")
    Path("small.yaml").write_text(more)
    run_study(read_study("small.yaml"), Path("again"), launcher)
    assert [job.name for job in launcher.jobs] == [
        "resnet14/seed0",
        *(f"small/{method}/seed2" for method in ("student_alone", "KD", "SFAKD")),
    ]
    assert bars == [(0, 7), (0, 0), (0, 0), (0, 4)]  # epochs; the teacher's count, though its results are known


def test_the_demo_at_its_smallest(launcher):
    tiny = ["SOLVER.EPOCHS", "1", "SOLVER.WARMUP_EPOCHS", "0.5", "DATASET.TRAIN_FRACTION", "0.02"]
    study = read_study("studies/demo", tiny)
    run_study(replace(study, cells=study.cells[:3]), OUT, launcher)  # one seed
    assert list(states().values()) == ["finished"] * 3
    assert {row["teacher_top1"] for row in rows() if row["method"] == "SFAKD"} == {"92.30"}


def test_a_failed_run_does_not_stop_the_others(place, launcher):
    broken = (place / "small.yaml").read_text().replace("TYPE: KD}", "TYPE: KD, TEACHER_WEIGHTS: small.yaml}")
    (place / "small.yaml").write_text(broken.replace("TEACHER: {}\n", ""))
    with pytest.raises(UserError) as caught:
        run_study(read_study("small.yaml"), OUT, launcher)
    assert [line.partition(":")[0] for line in caught.value.faults] == [
        *("small/KD/seed0", "small/SFAKD/seed0", "small/KD/seed1", "small/SFAKD/seed1"),
    ]
    assert [states()[f"student alone {seed}"] for seed in (0, 1)] == ["finished", "finished"]
    assert states()["KD 0"] == "failed"
    text = (OUT / "results.md").read_text()
    assert "Unfinished: 2 of 6 runs are done." in text and "Failed: small/KD/seed1: " in text


def test_students_of_a_failed_teacher_are_not_started(place, launcher):
    text = (place / "small.yaml").read_text().replace("TEACHER: {}", "TEACHER: {SOLVER: {LR: 1.0e+10}}")
    (place / "small.yaml").write_text(text.replace("EPOCHS: 1", "EPOCHS: 2"))
    with pytest.raises(UserError) as caught:
        run_study(read_study("small.yaml"), OUT, launcher)
    assert "loss" in caught.value.faults[0]
    assert caught.value.faults[1] == "small/KD/seed0: its teacher resnet14/seed0 failed"
    assert len(launcher.jobs) == 3  # the teacher and the students alone


def test_an_unfinished_run_continues(place, launcher):
    study = read_study("small.yaml", ["SOLVER.EPOCHS", "2"])
    run_study(study, OUT, launcher)
    whole = rows()
    half = OUT / "runs/small/KD/seed0"
    (half / "summary.json").unlink()
    assert "small/KD/seed0                                     epoch 2 of 2, about 0 s to go" in dry_run(study, OUT, 1)
    launcher.jobs.clear()
    run_study(study, OUT, launcher)
    assert [job.command_arguments()[-1] for job in launcher.jobs] == ["--resume"]
    assert rows() == whole


def test_other_settings_are_refused(place, launcher):
    run_study(read_study("small.yaml"), OUT, launcher)
    with pytest.raises(UserError, match=r"was run with other settings \(SOLVER.LR was 0.05, now 0.1\); give another"):
        run_study(read_study("small.yaml", ["SOLVER.LR", "0.1"]), OUT, launcher)
    (OUT / "runs/small/KD/seed0/summary.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"is not the summary of a run of this version: it has no name, .*; give another"
    ):
        run_study(read_study("small.yaml"), OUT, launcher)
    (OUT / "runs/small/KD/seed0/summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is damaged \(.*\); get it again, or remove it"):
        run_study(read_study("small.yaml"), OUT, launcher)


def test_an_unfinished_run_with_other_settings_is_refused(place, launcher):
    run_study(read_study("small.yaml"), OUT, launcher)
    (OUT / "runs/small/KD/seed0/summary.json").unlink()
    with pytest.raises(UserError, match=r"small/KD/seed0 was run with other settings \(SOLVER.EPOCHS was 1, now 5"):
        run_study(replace_cell(read_study("small.yaml"), "small/KD/seed0", EPOCHS=5), OUT, launcher)


def replace_cell(study, name, **solver):
    """Return a study with other settings of one cell."""
    for cell in study.cells:
        if cell.name == name:
            cell.cfg.SOLVER.update(solver)
    return study


def test_metrics_that_a_killed_machine_has_lost(place, launcher):
    run_study(read_study("small.yaml"), OUT, launcher, ["small/student_alone/*"])
    for seed, left in ((0, ""), (1, '{"epoch": 1, "sec')):
        (OUT / f"runs/small/student_alone/seed{seed}/metrics.jsonl").write_text(left)
    run_study(read_study("small.yaml"), OUT, launcher, ["small/student_alone/*"])
    assert [row["state"] for row in rows() if row["method"] == "student alone"] == ["finished"] * 2


def test_a_run_that_failed_before_it_saved_a_state_starts_again(place, launcher):
    bad = ["SOLVER.LR", "1e18", "SOLVER.EPOCHS", "2"]
    with pytest.raises(UserError, match="loss"):
        run_study(read_study("small.yaml", bad), OUT, launcher, ["small/student_alone/seed0"])
    assert (OUT / "runs/small/student_alone/seed0/nonfinite.pth").is_file()
    assert not (OUT / "runs/small/student_alone/seed0/latest.pth").exists()
    launcher.jobs.clear()
    run_study(read_study("small.yaml", ["SOLVER.EPOCHS", "2"]), OUT, launcher, ["small/student_alone/seed0"])
    assert states()["student alone 0"] == "finished"


def test_a_lost_job_does_not_stop_the_others(place, launcher):
    class Lost(Future):
        def result(self):
            raise RuntimeError("job 17 has no result:\n node failure")

    submit = launcher.submit

    def lose(job):
        if job.name != "small/KD/seed0":
            return submit(job)
        lost = Lost()
        lost.set_result("")
        return lost

    launcher.submit = lose
    with pytest.raises(UserError, match="^small/KD/seed0: job 17 has no result: node failure$"):
        run_study(read_study("small.yaml"), OUT, launcher)
    assert sorted(states().values()) == ["failed", *["finished"] * 6]


def test_a_run_in_use_fails_alone(place, launcher, monkeypatch):
    monkeypatch.setattr("mdistiller.study.runner.PATIENCE", 0.05)
    with locked(OUT / "runs/small/KD/seed1"), pytest.raises(UserError, match="^small/KD/seed1: a run is writing to"):
        run_study(read_study("small.yaml"), OUT, launcher)
    assert sorted(states().values()) == ["failed", *["finished"] * 6]


def test_a_student_waits_for_its_teacher():
    cells = [SimpleNamespace(name="T", teacher=""), SimpleNamespace(name="S", teacher="T")]
    assert total_seconds(cells, {"T": 40.0, "S": 10.0}, 2) == (50.0, 50.0)
    assert total_seconds(cells[1:], {"S": 10.0}, 2) == (10.0, 10.0)  # the teacher is trained


def test_dry_run(place):
    text = dry_run(read_study("small.yaml"), OUT, 2).splitlines()
    assert len(text) == 8 and all("epoch 0 of 1, about" in line for line in text[:-1])
    assert text[-1].startswith("7 of 7 runs to do, about ") and "with --jobs 2; less where" in text[-1]
    assert not OUT.exists()
    text = dry_run(read_study("small.yaml", ["DATASET.ROOT", "gone"]), OUT, 2, ["*/KD/*"]).splitlines()
    assert sum(line.endswith(" epoch 0 of 1") for line in text) == 3 and text[1].endswith(" not in --only")
    assert text[-1].startswith("3 of 7 runs to do; their time cannot be estimated (")
