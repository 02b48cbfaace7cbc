"""Results of other studies and machines: which are used, and which are not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mdistiller.errors import UserError
from mdistiller.study import validation_images
from mdistiller.study.dry_run import dry_run
from mdistiller.study.elsewhere import finished_elsewhere
from mdistiller.study.grid import read_study
from mdistiller.study.runner import run_study
from tests.conftest import make_image_folder
from tests.study.test_runner import OUT, rows, states


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


def test_results_of_other_images_or_teachers_are_not_used(place, launcher, caplog):
    run_study(read_study("small.yaml"), OUT, launcher)
    with (place / "small.yaml").open("a") as file:
        file.write(f"SUMMARIES: [{OUT}/summaries.jsonl]\n")
    make_image_folder(place / "others", size=24)
    launcher.jobs.clear()
    study = read_study("small.yaml", ["DATASET.ROOT", "others"])
    with caplog.at_level("INFO", "mdistiller"):
        assert "7 of 7 runs to do" in dry_run(study, Path("other"), 1)
        assert re.search("the digest of the validation images' pixels was [0-9a-f]{12}, now [0-9a-f]{12}", caplog.text)
        caplog.clear()
        # without the images there is nothing to compare
        assert "0 of 7 runs to do" in dry_run(read_study("small.yaml", ["DATASET.ROOT", "gone"]), Path("other"), 1)
        assert "validation images could not be compared (" in caplog.text
    # another teacher: its students are not used, and the student alone is
    (place / "small.yaml").write_text(
        (place / "small.yaml").read_text().replace("TEACHER: {}", "TEACHER: {SOLVER: {LR: 0.02}}")
    )
    text = dry_run(read_study("small.yaml"), Path("other"), 1)
    assert "5 of 7 runs to do" in text
    assert re.findall(r"small/(\w+)/seed\d +finished", text) == ["student_alone", "student_alone"]


def test_results_of_two_files_belong_to_the_teacher_of_their_file(place, launcher):
    """Two studies with other teachers and the same students: only the students alone are the same."""
    (place / "small.yaml").write_text((place / "small.yaml").read_text().replace("SEEDS: [0, 1]", "SEEDS: [0]"))
    run_study(read_study("small.yaml", ["SOLVER.EPOCHS", "2"]), Path("weak"), launcher)
    text = (place / "small.yaml").read_text().replace("EPOCHS: 1", "EPOCHS: 2")
    (place / "small.yaml").write_text(text)
    strong = text.replace("TEACHER: {}", "TEACHER: {SOLVER: {LR: 0.02}}")
    (place / "strong.yaml").write_text(strong)
    run_study(read_study("strong.yaml"), Path("strong"), launcher)
    weak = rows(Path("weak"))
    files = "SUMMARIES: [weak/summaries.jsonl, strong/summaries.jsonl]\n"
    for given in (files, "SHARE: [weak, strong]\n", "SHARE: [strong, weak]\n"):
        (place / "small.yaml").write_text(text + given)
        launcher.jobs.clear()
        run_study(read_study("small.yaml"), Path(f"again {given[8:14]}"), launcher)
        assert launcher.jobs == []
        assert rows(Path(f"again {given[8:14]}")) == weak
    assert {row["teacher_weights"] for row in weak} & {row["teacher_weights"] for row in rows(Path("strong"))} == {""}


def test_results_on_other_images_are_refused(place, launcher):
    run_study(read_study("small.yaml"), Path("studies/small"), launcher)
    make_image_folder(place / "others", size=24)
    other = ["DATASET.ROOT", "others"]
    with pytest.raises(UserError) as caught:
        run_study(read_study("small.yaml", other), Path("studies/small"), launcher)
    assert len(caught.value.faults) == 7
    assert re.match(
        r".*resnet14/seed0 was run on other data \(.* pixels was .*\); give another", caught.value.faults[0]
    )
    # a study that shares the teacher of the first trains its own on other images
    (place / "second.yaml").write_text((place / "small.yaml").read_text() + "SHARE: [small]\n")
    launcher.jobs.clear()
    run_study(read_study("second.yaml", other), Path("studies/second"), launcher, ["small/KD/seed0"])
    assert [job.name for job in launcher.jobs] == ["resnet14/seed0", "small/KD/seed0"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\xff\xfe{\x00", " cannot be read ('utf-8' codec can't decode"),
        (b"{}", "line 2, is not the summary of a run of this version: it has no name, epochs,"),
        (b'{"name"', "line 2, is not JSON ("),
        (b"[" * 10_000, "line 2, is not JSON ("),
        (b"[]", "line 2, is not the summary of a run, but a list; remove it"),
        (b'{"name": "small/KD/seed0", "last": null, "best": 3}', "it has no epochs, "),
        (("settings", "origin"), "it has no settings, origin;"),
    ],
)
def test_damaged_summaries(place, launcher, content, line):
    run_study(read_study("small.yaml"), OUT, launcher, ["small/student_alone/seed0"])
    whole = (OUT / "summaries.jsonl").read_bytes()
    if isinstance(content, tuple):  # a whole summary without the content of these keys
        content = json.dumps({**json.loads(whole.splitlines()[0]), **dict.fromkeys(content)}).encode()
    (place / "damaged.jsonl").write_bytes(whole + content)
    (place / "small.yaml").write_text((place / "small.yaml").read_text() + "SUMMARIES: [damaged.jsonl]\n")
    with pytest.raises(UserError) as caught:
        dry_run(read_study("small.yaml"), OUT, 1)
    assert line in str(caught.value) and "damaged.jsonl" in str(caught.value)


def test_the_input_of_pretrained_students_is_that_of_their_runs(place, launcher):
    """The checkpoint sets the size of the images, which no setting gives."""
    run_study(read_study("small.yaml"), OUT, launcher, ["small/student_alone/seed0"])
    weights = (OUT / "runs/small/student_alone/seed0/student_latest.pth").resolve()
    text = (place / "small.yaml").read_text().replace("INPUT_SIZE: 16, ", "")
    settings = f"SETTINGS:\n  DISTILLER: {{STUDENT_WEIGHTS: {weights}}}"
    (place / "tuned.yaml").write_text(text.replace("SETTINGS:", settings).replace("TEACHER: {}\n", ""))
    run_study(read_study("tuned.yaml"), Path("tuned"), launcher, ["small/student_alone/*"])
    launcher.jobs.clear()
    run_study(read_study("tuned.yaml"), Path("tuned"), launcher, ["small/student_alone/*"])
    assert launcher.jobs == [] and states(Path("tuned"))["student alone 1"] == "finished"


def test_an_estimate_does_not_take_the_pace_of_other_machines(place, launcher, capfd):
    run_study(read_study("small.yaml"), OUT, launcher, ["small/student_alone/seed0"])
    for hardware, measured in ((None, 0), ("another machine", 1)):
        summary = json.loads((OUT / "summaries.jsonl").read_text())
        summary["hardware"] = hardware or summary["hardware"]
        (place / "elsewhere.jsonl").write_text(json.dumps(summary))
        (place / "again.yaml").write_text((place / "small.yaml").read_text() + "SUMMARIES: [elsewhere.jsonl]\n")
        text = dry_run(read_study("again.yaml"), Path("again"), 1, ["small/student_alone/*"])
        assert re.search(r"seed0 +finished\n.*small/student_alone/seed1 +epoch 0 of 1, about", text, re.DOTALL)
        assert capfd.readouterr().err.count("measuring small/student_alone/seed1") == measured


def test_validation_images_are_read_once_for_all_variants(place, launcher, monkeypatch):
    parts = "VARIANTS:\n  half: {DATASET: {TRAIN_FRACTION: 0.5, FRACTION_SEED: 0}}\n  all: {}\n"
    with (place / "small.yaml").open("a") as file:
        file.write(parts)
    run_study(read_study("small.yaml"), OUT, launcher, ["small/*/student_alone/seed0"])
    with (place / "small.yaml").open("a") as file:
        file.write(f"SUMMARIES: [{OUT}/summaries.jsonl]\n")
    read, loader = [], validation_images.get_val_loader
    monkeypatch.setattr(validation_images, "get_val_loader", lambda *given: read.append(given) or loader(*given))
    images = validation_images.ValidationImages()
    found = finished_elsewhere(read_study("small.yaml"), Path("other"), images)
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
