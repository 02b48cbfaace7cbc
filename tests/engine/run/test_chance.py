"""Which accuracies of a teacher count as guessing."""

import pytest

from mdistiller.engine.run.chance import chance_warning


@pytest.mark.parametrize(
    ("limit", "num_classes", "num_images"),
    [
        (1.9439, 100, 1000),  # 1 % + 3 · sqrt(0.01 · 0.99 / 1000)
        (0.1424, 1000, 50_000),
        (51.5, 2, 10_000),
        (62.5, 2, 10),  # a quarter of the way to 100 %, where three standard errors are 47 %
    ],
)
def test_three_standard_errors_above_chance(limit, num_classes, num_images):
    assert chance_warning(limit - 0.001, num_classes, num_images)
    assert not chance_warning(limit + 0.001, num_classes, num_images)


def test_below_chance_too():
    assert chance_warning(0.0, 10, 100)


def test_a_perfect_teacher_is_never_warned_of():
    assert not any(chance_warning(100.0, classes, images) for classes in (2, 3, 1000) for images in (1, 2, 10))


def test_the_words():
    line = chance_warning(1.2, 100, 1000)
    assert line.startswith("warning: teacher top-1 1.2 % is chance level for 100 classes; ")
    assert all(f"DISTILLER.TEACHER_{key}" in line for key in ("CLASSES", "INPUT", "WEIGHTS"))
    assert len(line.splitlines()) == 1
