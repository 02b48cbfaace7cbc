"""Sections in detail: numbers, and what they say where something is missing."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mdistiller.engine.evaluation.eval_checkpoint import eval_checkpoint
from mdistiller.errors import UserError
from mdistiller.report.blocks import Figure, Gallery, Note, Table
from mdistiller.report.collect import feature_classes
from mdistiller.report.material import Material
from mdistiller.report.observe import observe
from mdistiller.report.runs import read_metrics, read_runs
from mdistiller.report.sections import frequency
from mdistiller.report.sections.agreement import agreement_section, in_teachers_space
from mdistiller.report.sections.classes import classes_section
from mdistiller.report.sections.cost import cost_section
from mdistiller.report.sections.frequency import frequency_section
from mdistiller.report.sections.images import data_address, images_section
from mdistiller.report.sections.settings import configuration_section, environment_section
from mdistiller.report.sections.summary import summary_section
from mdistiller.report.sections.training import training_section
from mdistiller.report.teachers import find_teachers
from tests.conftest import REPO
from tests.report.conftest import train


def blocks(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def notes(section):
    return " ".join(block.text for block in blocks(section, Note))


def look_at(*folders, own_code=()):
    runs = read_runs(folders, own_code=own_code)
    teachers = find_teachers(runs, own_code)
    return Material(runs, teachers, observe(runs, teachers), 0)


def test_accuracies_are_those_of_eval(material, trained):
    (table,) = blocks(summary_section(material), Table)
    for row, name in zip(table.rows, ("vanilla", "sfakd")):
        text = eval_checkpoint("resnet8", str(trained / "output" / name / "student_best.pth"))
        assert f"deployed  top-1 {row[3]} " in text
    assert table.rows[2][:3] == ["teacher", "–", "resnet14"]


def test_a_run_without_a_teacher_is_compared_with_that_of_the_others(material):
    (table,) = blocks(agreement_section(material), Table)
    assert [row[:2] for row in table.rows] == [["vanilla", "resnet14"], ["sfakd", "resnet14"]]
    for row in table.rows:
        assert sum(map(float, row[3:7])) == pytest.approx(100, abs=0.03)
    assert material.seen[0].teacher is material.seen[1].teacher, "evaluated once"
    assert [in_teachers_space(material, number) for number in (0, 1)] == [False, True]


def test_galleries_hold_the_images_that_one_of_the_two_gets_right(material):
    galleries = blocks(images_section(material), Gallery)
    seen = material.seen[1]
    student, teacher = (output.logits.argmax(1) == seen.target for output in (seen.student, seen.teacher))
    counts = [int((teacher & ~student).sum()), int((student & ~teacher).sum())]
    assert [len(gallery.pictures) for gallery in galleries] == [min(12, count) for count in counts]
    assert [gallery.caption.split()[0] for gallery in galleries] == list(map(str, counts))
    for gallery in galleries:
        for picture in gallery.pictures:
            assert picture.data.startswith("data:image/png;base64,") and picture.pixelated


def test_large_images_are_made_smaller():
    noise = torch.randint(0, 256, (400, 400, 3), dtype=torch.uint8)
    address = data_address(noise)
    assert address.startswith("data:image/jpeg;base64,") and len(address) < 40_000


def test_a_missing_teacher_is_named(runs):
    path = runs / "sfakd" / "student_best.pth"
    content = torch.load(path, weights_only=True)
    content["config"]["DISTILLER"]["TEACHER_WEIGHTS"] = "/gone/teacher.pth"
    torch.save(content, path)
    material = look_at(runs / "sfakd")
    for section in (summary_section, agreement_section, images_section):
        assert "The teacher resnet14 cannot be built: no checkpoint at /gone/teacher.pth" in notes(section(material))
    assert not blocks(agreement_section(material), Figure)
    assert "give a second run" in notes(classes_section(material))


def test_a_run_without_a_teacher_is_compared_with_one_that_can_be_built(runs):
    shutil.copytree(runs / "sfakd", runs / "moved")
    path = runs / "moved" / "student_best.pth"
    content = torch.load(path, weights_only=True)
    content["config"]["DISTILLER"]["TEACHER_WEIGHTS"] = "/gone/teacher.pth"
    torch.save(content, path)
    alone, moved, whole = find_teachers(read_runs([runs / name for name in ("vanilla", "moved", "sfakd")]))
    assert moved.model is None and whole.model is not None
    assert alone.model is whole.model


def test_a_run_alone_has_no_teacher(trained):
    material = look_at(trained / "output" / "vanilla")
    assert notes(agreement_section(material)) == "No run here was trained with a teacher."
    assert notes(frequency_section(material)) == "No run here was trained by SFAKD."


def test_gain_and_loss_of_classes(material):
    (table,) = blocks(classes_section(material), Table)
    right = [material.right(number) for number in (0, 1)]
    for label, row in enumerate(table.rows):
        own = material.seen[0].target == label
        before, after = (100 * value[own].double().mean().item() for value in right)
        assert row[1:] == ["6", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]


def test_weights_of_the_branches_come_from_the_log(material, monkeypatch):
    monkeypatch.setattr(frequency, "draw", lambda *given, **options: "<svg></svg>")  # drawings take seconds
    rows = material.runs[1].rows
    assert [set(row) >= {"fusion_alpha", "fusion_beta"} for row in rows] == [True, True]
    student = material.runs[1].source.student
    if material.runs[1].source.checkpoint["epoch"] == 2:
        assert rows[1]["fusion_alpha"] == student.head.projector.fusion.alpha.item()
    stripped = [{key: value for key, value in row.items() if "fusion" not in key} for row in rows]
    older = Material([replace(material.runs[1], rows=stripped)], material.teachers[1:], material.seen[1:], 0)
    caption = blocks(frequency_section(older), Figure)[-1].caption
    assert "has no weights of the branches; earlier versions did not record them" in caption


def test_costs_are_those_of_training(material, trained):
    (table,) = blocks(cost_section(material), Table)
    for row, name in zip(table.rows[1:], ("vanilla", "sfakd")):
        deployed = json.loads((trained / "output" / name / "summary.json").read_text())["deployed"]
        assert row[1:3] == [f"{deployed['parameters']:,}", f"{deployed['macs']:,}"]
        assert row[4:6] == [f"{deployed['head_parameters']:,}", f"{deployed['head_macs']:,}"]


def test_the_configuration_shows_what_differs(material):
    (table,) = blocks(configuration_section(material), Table)
    rows = {row[0]: (row[1:], place in table.marked) for place, row in enumerate(table.rows)}
    assert rows["DISTILLER.TYPE"] == (["NONE", "SFAKD", "NONE"], True)
    assert rows["SOLVER.LR"] == (["0.02", "0.02", "0.05"], False)
    assert not [key for key in rows if key.startswith("KD.")]
    (environment,) = blocks(environment_section(material), Table)
    assert {row[0]: row[1] for row in environment.rows}["torch"] == torch.__version__


def test_classes_whose_features_are_kept():
    assert feature_classes(3) == [0, 1, 2] and feature_classes(100) == list(range(0, 100, 10))
    assert len(feature_classes(1000)) == 10


def test_a_row_that_was_cut_off_is_left_out(runs):
    path = runs / "vanilla" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "lo')
    assert [row["epoch"] for row in read_metrics(path)] == [1, 2]


def test_an_unfinished_run_says_so(runs):
    (runs / "vanilla" / "summary.json").unlink()
    assert notes(summary_section(look_at(runs / "vanilla"))).endswith("so they have no summary.json: vanilla.")


def test_a_model_of_the_users_own(trained, registries_as_before):
    model = f"{REPO / 'tests/models/adapters/made_models.py'}:Net"
    folder = train(trained, "adapted", "DISTILLER.TYPE", "SFAKD", student=model, epochs=1)
    with pytest.raises(UserError, match="a model defined in custom code; if you trust that code, name it: -m NAME"):
        look_at(folder)
    material = look_at(folder, own_code=[model])
    seen = material.seen[0]
    assert seen.student.pooled.shape == seen.teacher.pooled.shape and seen.spectra is not None
    (table,) = blocks(cost_section(material), Table)
    deployed = json.loads((material.runs[0].folder / "summary.json").read_text())["deployed"]
    assert table.rows[1][1:3] == [f"{deployed['parameters']:,}", f"{deployed['macs']:,}"]


def test_odd_values_in_the_files_of_a_run(runs):
    (runs / "vanilla" / "metrics.jsonl").write_text(
        f'{{"epoch": 1, "lr": NaN, "loss": {"9" * 400}, "deployed_top1": "x"}}\n{{"epoch": 2, "loss": Infinity}}\n'
    )
    summary = {"seconds": float("nan"), "versions": [], "hardware": ["<b>"], "peak_memory_mib": 1e300}
    (runs / "vanilla" / "summary.json").write_text(json.dumps(summary))
    path = runs / "vanilla" / "student_best.pth"
    content = torch.load(path, weights_only=True)
    content["config"] = {"DATASET": content["config"]["DATASET"], "DISTILLER": {}, "X": torch.ones(3), "Y": {1: None}}
    torch.save(content, path)
    material = look_at(runs / "vanilla")
    assert material.runs[0].series("loss") == {1: float("inf"), 2: float("inf")}
    assert not material.runs[0].series("deployed_top1")
    (table,) = blocks(configuration_section(material), Table)
    assert {row[0]: row[1] for row in table.rows}["X"] == "tensor([1., 1., 1.])"
    training_section(material)  # must not fail
    environment_section(material)
    summary_section(material)


def test_runs_without_a_filter_to_draw_say_why(trained):
    small = ("DATASET.INPUT_SIZE", "4", "DATASET.PADDING", "1")
    one = train(trained, "one_frequency", "DISTILLER.TYPE", "SFAKD", *small, epochs=1)
    assert "The last map of one_frequency is 1×1" in notes(frequency_section(look_at(one)))
    spatial = train(trained, "spatial", "DISTILLER.TYPE", "SFAKD", "SFAKD.FREQUENCY_BRANCH", "False", epochs=1)
    section = frequency_section(look_at(spatial))
    assert "The student of spatial is deployed without a frequency branch" in notes(section)
    assert [panel.title for panel in blocks(section, Figure)[0].panels] == ["Weights of the branches"]
