"""Two small runs, trained once: a student alone, and the same by SFAKD. Their class names are hostile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.report import report
from mdistiller.report.material import Material
from mdistiller.report.observe import observe
from mdistiller.report.report import write_report
from mdistiller.report.runs import read_runs
from mdistiller.report.sections.summary import summary_section
from mdistiller.report.teachers import find_teachers
from tests.conftest import make_image_folder

CLASSES = ("$\\frac{&amp;", "<img src=x onerror=alert(1)>", "\u202eclass' \"--><script>")


def train(place: Path, name: str, *overrides: str, student: str = "resnet8", epochs: int = 2) -> Path:
    """Train a run on the images in `place`; return its folder."""
    cfg = load_cfg(
        None,
        [
            *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(place / "images"), "DATASET.INPUT_SIZE", "16"),
            *("DATASET.NUM_WORKERS", "0", "DISTILLER.STUDENT", student, "DISTILLER.TEACHER", "resnet14"),
            *("DISTILLER.TEACHER_WEIGHTS", str(place / "teacher.pth"), "LOG.PREFIX", str(place / "output")),
            *("EXPERIMENT.NAME", name, "SOLVER.EPOCHS", str(epochs), "SOLVER.BATCH_SIZE", "8", "SOLVER.LR", "0.02"),
            *("SOLVER.AMP", "off", "SOLVER.LR_DECAY_STAGES", "[]", "LOG.WANDB", "False", *overrides),
        ],
    )
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer.folder.path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder with `images/`, `teacher.pth` and `output/`; not to be changed."""
    place = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDISTILLER_CACHE", str(place / "cache"))
        make_image_folder(place / "images")
        for split in ("train", "val"):
            for label, name in enumerate(CLASSES):
                (place / "images" / split / f"class_{label}").rename(place / "images" / split / name)
        teacher = train(place, "teacher", student="resnet14", epochs=4)
        shutil.copy(teacher / "student_latest.pth", place / "teacher.pth")
        train(place, "vanilla")
        train(place, "sfakd", "DISTILLER.TYPE", "SFAKD")
    return place


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the two runs that a test may damage: `runs / "vanilla"` and `runs / "sfakd"`."""
    for name in ("vanilla", "sfakd"):
        shutil.copytree(trained / "output" / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def material(trained):
    """What the sections read, of both runs."""
    runs = read_runs([trained / "output" / "vanilla", trained / "output" / "sfakd"])
    teachers = find_teachers(runs)
    return Material(runs, teachers, observe(runs, teachers), 0)


@pytest.fixture(scope="session")
def page(trained):
    """The file of the whole page on both runs."""
    place = trained / "page"
    place.mkdir()
    return write_report([trained / "output" / "vanilla", trained / "output" / "sfakd"], place / "report.html")


@pytest.fixture
def only_the_summary(monkeypatch):
    """Leave the drawings out, which take most of the time."""
    monkeypatch.setattr(report, "all_sections", lambda material: [summary_section(material)])
