"""Running a study: what runs, what is skipped, what is reported, and the files it leaves."""

import csv
import json
import re
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from mdistiller.engine.run.lock import locked
from mdistiller.errors import UserError
from mdistiller.study import elsewhere
from mdistiller.study.grid import read_study
from mdistiller.study.runner import dry_run, run_study
from mdistiller.study.tables import MACHINE_COLUMNS
from tests.conftest import make_image_folder

OUT = Path("out")


def rows(folder=OUT):
    """The rows of results.csv without what depends on the machine."""
    with (folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MACHINE_COLUMNS} for row in csv.DictReader(file)]


def states(folder=OUT):
    return {f"{row['method']} {row['seed']}": row["state"] for row in rows(folder)}


def test_a_study_from_start_to_end(place, launcher):
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
    assert "- Comparisons over fewer than 3 seeds make no statement." in text
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
    assert [job.words()[-1] for job in launcher.jobs] == ["--resume"]
    assert rows() == whole


def test_other_settings_are_refused(place, launcher):
    run_study(read_study("small.yaml"), OUT, launcher)
    with pytest.raises(UserError, match=r"was run with other settings \(SOLVER.LR was 0.05, now 0.1\); give another"):
        run_study(read_study("small.yaml", ["SOLVER.LR", "0.1"]), OUT, launcher)
    (OUT / "runs/small/KD/seed0/summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary.json has no name, last, .*; an earlier version wrote it"):
        run_study(read_study("small.yaml"), OUT, launcher)
    (OUT / "runs/small/KD/seed0/summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is not the summary of a run"):
        run_study(read_study("small.yaml"), OUT, launcher)


def test_results_with_other_settings_are_not_used(place, launcher, caplog):
    run_study(read_study("small.yaml"), OUT, launcher)
    with (place / "small.yaml").open("a") as file:
        file.write(f"SUMMARIES: [{OUT}/summaries.jsonl]\n")
    launcher.jobs.clear()
    with caplog.at_level("INFO", "mdistiller"):
        run_study(read_study("small.yaml", ["KD.TEMPERATURE", "2.0"]), Path("other"), launcher)
    assert [job.name for job in launcher.jobs] == ["resnet14/seed0", "small/KD/seed0", "small/KD/seed1"]
    assert (
        "small/KD/seed0 under other conditions (KD.TEMPERATURE was 4.0, now 2.0), and 1 more; not used" in caplog.text
    )


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


def test_results_of_other_images_or_teachers_are_not_used(place, launcher, caplog):
    run_study(read_study("small.yaml"), OUT, launcher)
    with (place / "small.yaml").open("a") as file:
        file.write(f"SUMMARIES: [{OUT}/summaries.jsonl]\n")
    make_image_folder(place / "others", size=24)
    launcher.jobs.clear()
    study = read_study("small.yaml", ["DATASET.ROOT", "others"])
    with caplog.at_level("INFO", "mdistiller"):
        assert "7 of 7 runs to do" in dry_run(study, Path("other"), 1)
        assert "the pixels of the validation images were" in caplog.text
        caplog.clear()
        # without the images there is nothing to compare
        assert "0 of 7 runs to do" in dry_run(read_study("small.yaml", ["DATASET.ROOT", "gone"]), Path("other"), 1)
        assert "are used without a look at the data (" in caplog.text
    # another teacher: its students are not used, and the student alone is
    (place / "small.yaml").write_text(
        (place / "small.yaml").read_text().replace("TEACHER: {}", "TEACHER: {SOLVER: {LR: 0.02}}")
    )
    text = dry_run(read_study("small.yaml"), Path("other"), 1)
    assert "5 of 7 runs to do" in text
    assert re.findall(r"small/(\w+)/seed\d +finished", text) == ["student_alone", "student_alone"]


def test_validation_images_are_read_once_for_all_variants(place, launcher, monkeypatch):
    parts = "VARIANTS:\n  half: {DATASET: {TRAIN_FRACTION: 0.5, FRACTION_SEED: 0}}\n  all: {}\n"
    with (place / "small.yaml").open("a") as file:
        file.write(parts)
    run_study(read_study("small.yaml"), OUT, launcher, ["small/*/student_alone/seed0"])
    with (place / "small.yaml").open("a") as file:
        file.write(f"SUMMARIES: [{OUT}/summaries.jsonl]\n")
    read, loader = [], elsewhere.get_val_loader
    monkeypatch.setattr(elsewhere, "get_val_loader", lambda *given: read.append(given) or loader(*given))
    found = elsewhere.finished_elsewhere(read_study("small.yaml"), Path("other"), ())
    assert sorted(found) == ["small/all/student_alone/seed0", "small/half/student_alone/seed0"] and len(read) == 1


def test_a_study_shares_the_teacher_and_the_runs_of_another(place, launcher):
    run_study(read_study("small.yaml"), Path("studies/small"), launcher, ["small/KD/seed0"])
    assert [job.name for job in launcher.jobs] == ["resnet14/seed0", "small/KD/seed0"]
    launcher.jobs.clear()
    (place / "second.yaml").write_text((place / "small.yaml").read_text() + "SHARE: [small, gone]\n")
    run_study(read_study("second.yaml"), Path("studies/second"), launcher, ["small/*/seed0"])
    assert [job.name for job in launcher.jobs] == ["small/student_alone/seed0", "small/SFAKD/seed0"]
    assert states(Path("studies/second"))["KD 0"] == "finished"
    with pytest.raises(UserError, match="--only is 'small/KD/seed9', which fits no run of the study; did you mean"):
        run_study(read_study("second.yaml"), Path("studies/second"), launcher, ["small/KD/seed9"])
    launcher.jobs.clear()
    fresh = replace(read_study("second.yaml"), share=())
    run_study(fresh, Path("studies/third"), launcher, ["small/KD/seed0"])
    assert [job.name for job in launcher.jobs] == ["resnet14/seed0", "small/KD/seed0"]
    assert rows(Path("studies/third"))[2] == rows(Path("studies/second"))[2]


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


def test_dry_run(place):
    text = dry_run(read_study("small.yaml"), OUT, 2).splitlines()
    assert len(text) == 8 and all("epoch 0 of 1, about" in line for line in text[:-1])
    assert text[-1].startswith("7 of 7 runs to do, about ") and text[-1].endswith("with --jobs 2")
    assert not OUT.exists()
    text = dry_run(read_study("small.yaml", ["DATASET.ROOT", "gone"]), OUT, 2, ["*/KD/*"]).splitlines()
    assert sum(line.endswith(" epoch 0 of 1") for line in text) == 3 and text[1].endswith(" not in --only")
    assert text[-1].startswith("3 of 7 runs to do; their time cannot be estimated (")
