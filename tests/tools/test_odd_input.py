"""What only a hostile or a clumsy hand makes: files, paths, checkpoints, states, streams; one line and status 2."""

import builtins
import errno
import io
import json
import os
import sys
import tarfile

import pytest
import torch

from mdistiller.models import build_model
from tests.processes import REPO, run
from tests.tools.test_faults import refused

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefghi", "bcdefghij")
)
# what stands after `_BASE_: run.yaml`, and the line
YAMLS = {
    "a tag that runs code": (
        "SOLVER: !!python/object/apply:os.system [touch owned]",
        "could not determine a constructor",
    ),
    "a key twice": ("SOLVER: {LR: 0.1, LR: 0.2}", "the key LR is given twice"),
    "a section twice": ("SOLVER: {LR: 0.1}\nSOLVER: {EPOCHS: 2}", "the key SOLVER is given twice"),
    "digits": ("SOLVER: {EPOCHS: 1" + "0" * 5000 + "}", "is not valid YAML: "),
    "a date": ("SOLVER: {LR: 2020-01-01}", "SOLVER.LR in x.yaml is '2020-01-01'; expected a number"),
    "a date that is none": ("SOLVER: {LR: 2020-13-45}", "SOLVER.LR in x.yaml is '2020-13-45'; expected a number"),
    "a billion values": (LAUGHS, "is not valid YAML: more than 100000 values"),
    "a circle": ("SOLVER: &a {LR: [*a]}", "is not valid YAML: more than 100000 values"),
    "a set": ("DATASET: {STD: !!set {0.1, 0.2, 0.3}}", "DATASET.STD is {0.1"),
    "no section": ("SOLVER:", "SOLVER in x.yaml is a section, given None"),
    "tabs": ("SOLVER:\n\tLR: 0.1", "cannot start any token"),
    "NULs": ("\0\0", "special characters are not allowed"),
    "two bases": ('_BASE_: "a\\0b"', "is given twice"),
    "a plug-in that no file can be": ('PLUGINS: ["a\\0b.py"]', "cannot be a path (embedded null byte)"),
    "a name of two lines": ('SOLVER: {"A\\nB": 1}', "unknown config key SOLVER.A B in x.yaml"),
    "a name in no encoding": ('EXPERIMENT: {NAME: "\\ud800"}', "EXPERIMENT.NAME or LOG.PREFIX is not valid UTF-8"),
}
CONFIGS = {
    "/dev/zero": "neither a file nor a folder",
    "/dev/stdin": "",
    "pipe": "neither a file nor a folder",
    "circle": "cannot be a path (Too many levels of symbolic links)",
    "nowhere": "config nowhere cannot be read (No such file or directory); give the path of a YAML file",
    "~nobody_of_that_name/x.yaml": "cannot be a path",
    "a\0b": "cannot be a path (embedded null byte)",
    "a" * 5000: "cannot be a path (File name too long)",
    "a\nb": "config a b cannot be read",
    "": "config . cannot be read (Is a directory)",
}


@pytest.mark.parametrize("kind", list(YAMLS))
def test_yaml(command, place, kind):
    content, expected = YAMLS[kind]
    (place / "x.yaml").write_text(f"_BASE_: run.yaml\n{content}\n")
    status, out, err = command("train", "--cfg", "x.yaml")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert expected in err
    assert not (place / "owned").exists()


def test_a_date_may_be_a_name(command, place):
    (place / "x.yaml").write_text("_BASE_: run.yaml\nEXPERIMENT: {NAME: 2020-01-01}\n")
    assert command("train", "--cfg", "x.yaml")[0] == 0
    assert (place / "output/2020-01-01/summary.json").is_file()


@pytest.mark.parametrize("path", list(CONFIGS), ids=[f"{path!a:.20}" for path in CONFIGS])
def test_paths(command, place, path):
    os.mkfifo(place / "pipe")
    (place / "circle").symlink_to("circle")
    (place / "nowhere").symlink_to("gone")
    for call in (("train", "--cfg", path), ("eval", "-m", "resnet8", "-c", path or ".")):
        status, out, err = command(*call)
        assert (status, out) == (2, ""), call
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert call[0] == "eval" or CONFIGS[path] in err


@pytest.mark.parametrize(
    "change",
    [
        {"last": {"deployed_top1": "high", "deployed_top5": 1}},
        {"last": {"deployed_top1": 10**400, "deployed_top5": 1}},
        {"student": ["resnet8"]},
        {"student": "\ud800"},
        {"method": None},
    ],
)
def test_a_reference_that_cannot_be_shown(command, place, change):
    good = {
        "student": "a",
        "method": "KD",
        "last": {"deployed_top1": 1, "deployed_top5": 1},
        "best": {"deployed_top1": 1},
    }
    (place / "r.json").write_text(json.dumps({**good, **change}))
    (line,) = refused(command, place, "EXPERIMENT.REFERENCE [r.json]")
    assert line.startswith("EXPERIMENT.REFERENCE r.json is not the summary.json of a run (")


WEIGHTS = {
    "NaN": (lambda w: w * float("nan"), r"not usable: .* NaN or infinite"),
    "whole numbers": (lambda w: w.long(), "not usable: .* whole numbers"),
    "complex": (lambda w: w.cfloat(), "not usable: .* complex"),
    "sparse": (lambda w: w.to_sparse(), "not usable: .* sparse"),
    "without values": (lambda w: w.to("meta"), "not usable: .* without values"),
}


@pytest.mark.parametrize("kind", list(WEIGHTS))
def test_weights_that_are_no_numbers(command, place, kind):
    make, message = WEIGHTS[kind]
    state = build_model("resnet14", 3).state_dict()
    torch.save({k: make(v) if v.is_floating_point() else v for k, v in state.items()}, place / "teacher.pth")
    (line,) = refused(command, place, "")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(line)


def test_weights_by_number(command, place):
    torch.save({"model": dict(enumerate(build_model("resnet14", 3).state_dict().values()))}, place / "teacher.pth")
    (line,) = refused(command, place, "")
    assert "missing: conv1.weight" in line
    assert "unexpected: 0, 1, 2 and " in line


JUNK = [-1, 10**30, float("nan"), "x", {"a": 1}, torch.ones(2)]


def test_a_state_whose_fields_are_damaged(command, place):
    assert command("train", "--cfg", "run.yaml")[0] == 0
    folder = place / "output/distill/default"
    good = torch.load(folder / "latest.pth", weights_only=True)
    within = [("meter", "images"), ("meter", "sums"), ("meter", "correct"), ("best", "deployed_top1")]
    changes = [(key, {**good, key: junk}) for key in good if key != "scaler" for junk in JUNK]
    changes += [(f"{a}.{b}", {**good, a: {**good[a], b: junk}}) for a, b in within for junk in JUNK]
    options = good["optimizer"]["param_groups"][0]
    for key in ("momentum", "weight_decay"):
        groups = [{**options, key: "x"}]
        changes.append((key, {**good, "optimizer": {**good["optimizer"], "param_groups": groups}}))
    metrics = (folder / "metrics.jsonl").read_bytes()
    refusals = 0
    for key, state in changes:
        torch.save(state, folder / "latest.pth")
        status, _, err = command("train", "--cfg", "run.yaml", "--resume")
        assert status in (0, 2), (key, err)
        if status == 2:
            assert err.startswith("error: ") and err.count("\n") == 1, (key, err)
            assert (folder / "metrics.jsonl").read_bytes() == metrics, key
            refusals += 1
    assert refusals > 100


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("fetch_ckpts --file /dev/zero", "cannot read /dev/zero (neither a file nor a folder)"),
        ("fetch_ckpts --file pipe", "cannot read pipe (neither a file nor a folder)"),
        ("fetch_ckpts --file a\0b", "cannot be a path (embedded null byte)"),
        ("fetch_ckpts --file deep.tar", "is nested in 1500 folders; expected fewer than 100"),
        (f"fetch_ckpts --url http://localhost:1/{'a' * 300}", "cannot be downloaded"),
        ("compare_methods table --json images", "--json images is a folder"),
        ("compare_methods table --json gone/x", "--json gone/x: the folder gone does not exist"),
        (f"benchmark --json {'a' * 300}", "cannot be a path (File name too long)"),
    ],
)
def test_the_other_command_lines(command, place, arguments, expected):
    os.mkfifo(place / "pipe")
    with tarfile.open(place / "deep.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a/" * 1500 + "b"))
    status, _, err = command(*arguments.split(" "))
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("images", "the folder images cannot be read (Permission denied); fix its permissions"),
        ("images/train", "the folder images/train cannot be read (Permission denied); fix its permissions"),
        ("images/train/class_0", "the folder images/train/class_0 cannot be read (Permission denied); fix its"),
        ("teacher.pth", "teacher.pth cannot be read (Permission denied); fix its permissions"),
        ("run.yaml", "config run.yaml cannot be read (Permission denied)"),
    ],
)
def test_what_may_not_be_read(command, place, monkeypatch, kept, expected):
    def denied(call):
        def asked(path, *arguments, **keys):
            if not isinstance(path, int) and os.path.normpath(os.fspath(path)) in (kept, str(place / kept)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *arguments, **keys)

        return asked

    # as for a user: root, whom tests may run as, may read anything
    for module, name in ((os, "listdir"), (os, "scandir"), (io, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, denied(getattr(module, name)))
    status, out, err = command("train", "--cfg", "run.yaml")
    assert (status, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_closed_streams(place):
    status, _, _ = in_shell("tools/train.py --cfg run.yaml <&- >&- 2>&-")
    assert status == 0
    assert (place / "output/distill/default/summary.json").is_file()


def test_nobody_reads(place):
    os.mkfifo(place / "gone")  # the run starts when the reader of its output is gone
    reader = "{ exec <&-; echo > gone; }"
    status, _, err = in_shell(f"{{ read < gone; tools/train.py --cfg run.yaml; }} | {reader}; exit ${{PIPESTATUS[0]}}")
    assert status == 2
    line = (
        "error: the output or a file cannot be written (Broken pipe); continue with --resume from the last saved state"
    )
    assert err == line + "\n"


def test_a_terminal_that_knows_few_characters(place):
    status, out, err = in_shell(
        "tools/train.py --cfg run.yaml EXPERIMENT.NAME é", PYTHONIOENCODING="ascii", PYTHONUTF8="1"
    )
    assert (status, err) == (0, "")
    assert r"output/\xe9" in out


def in_shell(line, **environment):
    line = line.replace("tools/train.py", f"{sys.executable} {REPO}/tools/train.py")
    return run("bash", "-c", line, **environment)
