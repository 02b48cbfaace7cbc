"""The comparison of settings, which studies and resumed runs share."""

from __future__ import annotations

import pytest

from mdistiller.distillers import Distiller, distiller_dict, register
from mdistiller.engine.cfg import CFG, load_cfg, setting_changes, settings_of
from mdistiller.study.results import changed_settings


def changes(before, now):
    """Return what a study says of a run with the settings `before` whose cell has the settings `now`."""
    return changed_settings(settings_of(load_cfg(None, before)), load_cfg(None, now))


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ([], ["DISTILLER.STUDENT_ARGS", "{img_size: 64}"], "STUDENT_ARGS was None, now {'img_size': 64}"),
        (["DISTILLER.TEACHER_ARGS", "{a: 1}"], ["DISTILLER.TEACHER_ARGS", "{b: 1}"], "was {'a': 1}, now {'b': 1}"),
        (["DISTILLER.TEACHER_INPUT", "{size: 224}"], [], "TEACHER_INPUT was {'size': 224}, now None"),
        (["DISTILLER.TEACHER_INPUT", "same"], ["DISTILLER.TEACHER_INPUT", "{size: 8}"], "was 'same', now {'size': 8}"),
        (["DISTILLER.STUDENT", "a.py:make"], ["DISTILLER.STUDENT", "a.py:other"], "was 'a.py:make', now 'a.py:other'"),
        (["DISTILLER.STUDENT_WEIGHTS", "/x/a.pth"], ["DISTILLER.STUDENT_WEIGHTS", "b.pth"], "now 'b.pth'"),
        (["DATASET.UNLABELED", "images"], [], "DATASET.UNLABELED was 'images', now ''"),
    ],
)
def test_changes(before, now, change):
    (found,) = changes(before, now)
    assert change in found


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["DISTILLER.STUDENT", "/elsewhere/own.py:make"], ["DISTILLER.STUDENT", "own.py:make"]),
        (["DISTILLER.STUDENT_WEIGHTS", "/elsewhere/a.pth"], ["DISTILLER.STUDENT_WEIGHTS", "a.pth"]),
        (["DATASET.UNLABELED", "/elsewhere/images"], ["DATASET.UNLABELED", "data/images"]),
        (["DISTILLER.STUDENT_ARGS", "{}"], []),
        (["DATASET.INPUT_SIZE", "32"], []),  # the size of the data set
        (["SOLVER.LR", "0.05", "LOG.PREFIX", "a"], ["SOLVER.LR", "0.05", "LOG.PREFIX", "b"]),
    ],
)
def test_the_same_settings(before, now):
    assert changes(before, now) == []


@pytest.fixture
def open_section():
    """Register a plug-in without DEFAULTS, whose section takes any key."""

    @register("OPEN_SECTION")
    class Open(Distiller):
        needs_teacher = False

    load_cfg(None, ["OPEN_SECTION.ALPHA", "1"])  # adds the section
    yield
    distiller_dict.pop("OPEN_SECTION")
    CFG.pop("OPEN_SECTION", None)


def test_keys_without_a_default(open_section):
    one, two = {"OPEN_SECTION.ALPHA": 1}, {"OPEN_SECTION.ALPHA": 1, "OPEN_SECTION.BETA": 2}
    assert setting_changes(one, two) == ["OPEN_SECTION.BETA was 'not set', now 2"]
    assert setting_changes(two, one) == ["OPEN_SECTION.BETA was 2, now 'not set'"]
    assert setting_changes(two, two) == []
    # A key that the library no longer has, or does not have yet.
    assert setting_changes({"SOLVER.REMOVED": 1}, {"SOLVER.NEW": 2}) == []
