"""What users give that is no run, and places that cannot be written to: one line, status 2, and nothing is changed."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from mdistiller.report.runs import MAX_LABEL, _labels
from tests.test_atomic_files import limited_files

pytestmark = pytest.mark.usefixtures("only_the_summary")


@pytest.fixture
def place(runs):
    """The folder of the runs, with one folder or file for each kind of fault."""
    (runs / "empty").mkdir()
    for name in ("unfinished", "no_log", "bad_row", "bad_summary", "list_summary", "damaged", "other_data", "no_data"):
        (runs / name).mkdir()
        for file in ("student_best.pth", "metrics.jsonl", "config.yaml"):
            (runs / name / file).write_bytes((runs / "vanilla" / file).read_bytes())
    (runs / "unfinished" / "student_best.pth").unlink()
    (runs / "no_log" / "metrics.jsonl").unlink()
    (runs / "bad_row" / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": "<b>\x1b[31m"}\n{"epoch": 2}\n')
    (runs / "bad_summary" / "summary.json").write_text('{"name": ')
    (runs / "list_summary" / "summary.json").write_text("[]")
    (runs / "damaged" / "student_best.pth").write_bytes((runs / "vanilla" / "student_best.pth").read_bytes()[:5000])
    content = torch.load(runs / "vanilla" / "student_best.pth", weights_only=True)
    torch.save({**content, "classes": ["a", "b", "c"]}, runs / "other_data" / "student_best.pth")
    content["config"]["DATASET"]["ROOT"] = ""
    torch.save(content, runs / "no_data" / "student_best.pth")
    (runs / "thesis.html").write_text("<html>my thesis</html>")
    return runs


def test_labels_are_different():
    folders = [Path("/x") / end for end in ("a/SFAKD/seed0", "b/SFAKD/seed0", "b/KD/seed1", "c")]
    assert _labels(folders) == ["a/SFAKD/seed0", "b/SFAKD/seed0", "seed1", "c"]
    long = [Path(f"/x/{'y' * 50}{n}") for n in (1, 2)]
    assert [label[:5] for label in _labels(long)] == ["1: yy", "2: yy"]
    assert max(map(len, _labels(long))) == MAX_LABEL


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


INPUTS = [
    (["gone"], "out.html", "there is no run folder .*gone; give the folder of a run"),
    (["vanilla/student_best.pth"], "out.html", "student_best.pth is a file; give the folder of its run, .*vanilla"),
    (["empty"], "out.html", "empty is not the folder of a run: it holds neither metrics.jsonl nor config.yaml"),
    (["unfinished"], "out.html", "the run .*unfinished has no checkpoint of a student yet .*continue it with --resume"),
    (["no_log"], "out.html", "the metrics .*metrics.jsonl cannot be read .No such file"),
    (["bad_row"], "out.html", r"line 2 of .*metrics.jsonl is not a row of a run .*<b>.*; fix or remove it"),
    (["bad_summary"], "out.html", "summary.json is damaged .*; get it again, or remove it"),
    (["list_summary"], "out.html", "summary.json is damaged .it holds a list.; get it again, or remove it"),
    (["damaged"], "out.html", "student_best.pth is (damaged|truncated)"),
    (["vanilla", "other_data"], "out.html", "vanilla and .*other_data are on different data .*give runs on the same"),
    (
        ["no_data"],
        "out.html",
        "images of the run .*no_data cannot be read: DATASET.ROOT is not set.*--set DATASET.ROOT",
    ),
    (["vanilla"], "gone/out.html", "--output .*out.html: there is no folder .*gone; make it, or give another"),
    (["vanilla"], "sfakd", "--output .*sfakd is a folder; give the name of a file, such as .*sfakd/report.html"),
    (["vanilla"], "thesis.html", "thesis.html exists and is not an earlier report; give --overwrite"),
    (["vanilla"], "a\0b", "cannot be a path .embedded null byte"),
    (["vanilla"], "n" * 300, "cannot be a path .File name too long"),
    ([], "out.html", "the following arguments are required: RUN"),
]


@pytest.mark.parametrize(("names", "output", "message"), INPUTS)
def test_one_line_says_what_is_wrong(command, place, names, output, message):
    before = listing(place)
    paths = [place / name for name in names]
    status, out, err = command("report", *paths, "--output", f"{place}/{output}")
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: ") and err.strip().isprintable()
    assert re.search(message, err), err
    assert listing(place) == before


def test_other_arguments(command, runs):
    for arguments, message in (
        (("--set", "SOLVER.LRR", "1"), "unknown config key SOLVER.LRR"),
        (("--set", "DATASET.ROOT"), "--set: expected 2 arguments"),
        (("--set", "DATASET.ROOT", runs / "gone"), "gone"),
        (("--reference", runs / "gone"), "there is no run folder"),
    ):
        status, _, err = command("report", runs / "vanilla", "--output", "out.html", *arguments)
        assert status == 2 and len(err.splitlines()) == 1 and message in err, err
    status, _, err = command("report", runs / "vanilla")
    assert status == 2 and "required: --output" in err and not os.path.exists("out.html")


def test_runs_that_were_validated_on_different_images(command, runs, trained):
    images = runs / "images"
    for file in sorted((trained / "images").rglob("*.png")):
        copy = images / file.relative_to(trained / "images")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    path = runs / "sfakd" / "student_best.pth"
    content = torch.load(path, weights_only=True)
    content["config"]["DATASET"]["ROOT"] = str(images)
    torch.save(content, path)
    arguments = ("report", runs / "vanilla", runs / "sfakd", "--output", "out.html")
    assert command(*arguments)[0] == 0, "the same images in another place"
    first, second = sorted((images / "val").rglob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    status, _, err = command(*arguments)
    assert status == 2 and "was validated on other images than the first run" in err
    first.unlink()
    status, _, err = command(*arguments)
    assert status == 2 and "was validated on other images than the first run" in err


def test_a_full_disk_leaves_nothing_behind(command, runs, tmp_path):
    target = tmp_path / "place" / "out.html"
    target.parent.mkdir()
    for before in (b"", b'<meta name="generator" content="mdistiller report">'):
        if before:
            target.write_bytes(before)
        with limited_files(1000):
            status, _, err = command("report", runs / "vanilla", "--output", target)
        assert status == 2 and len(err.splitlines()) == 1 and "cannot write to" in err and "free some space" in err
        assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == (
            [("out.html", before)] if before else []
        )


@pytest.mark.parametrize(("module", "name"), [("matplotlib", "matplotlib"), ("jinja2", "Jinja2")])
def test_a_missing_library_is_named(command, monkeypatch, runs, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = command("report", runs / "vanilla", "--output", "out.html")
    assert status == 2 and err.startswith(f"error: a report needs {name}; run: pip install {name}")
    assert not os.path.exists("out.html")
