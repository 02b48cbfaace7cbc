"""tools/prove_exports.py: a row for each format, also for the one that is refused."""

import re

import pytest

from mdistiller.export import table

DECIDES = "tests.export.networks:Decides"


@pytest.fixture
def two_formats(monkeypatch):
    """Leave out the formats that take seconds; the other tests have them."""
    monkeypatch.setattr(table, "FORMATS", {name: table.FORMATS[name] for name in ("torch", "safetensors")})


def test_the_table(command, make_student, two_formats):
    path = make_student(None, DECIDES)
    status, out, err = command("prove_exports", path, "gone.pth", "-m", DECIDES)
    head, rule, refused, row = out.splitlines()
    columns = ["student", "method", "file", "top-1", "change", "agreement", "logit difference", "MiB"]
    assert [cell.strip() for cell in head.split("|")[1:9]] == columns
    assert refused.startswith(f"| {DECIDES} | NONE | torch | refused |")
    number = r"[\d.]+"
    assert re.fullmatch(
        rf"\| {DECIDES} \| NONE \| safetensors \| {number} \| \+0.00 \| 100.00 \| 0 of {number}"
        rf" \| {number} \| {number} \| {number} \|",
        row,
    )
    assert len({line.count("|") for line in (head, rule, refused, row)}) == 1
    assert status == 2 and len(err.splitlines()) == 2
    assert "torch: the student cannot be exported by --format torch" in err and "no checkpoint at gone.pth" in err
    assert [file.name for file in path.parent.iterdir()] == ["student_best.pth"]


def test_no_images(command, make_student, two_formats):
    status, out, err = command("prove_exports", make_student(), "--root", "gone")
    assert status == 2 and out.count("refused") == 2
    assert err.count("the proof needs the validation images") == len(err.splitlines()) == 2
