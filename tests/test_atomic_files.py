"""Atomic writes, and what a run leaves behind when its folder becomes unwritable."""

import errno
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mdistiller.atomic_files import replace, replace_text
from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.errors import UserError
from tests.engine.test_trainer import rows, settings
from tests.processes import run
from tests.soak.kill_and_resume import differences


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path, previous = tmp_path / "a", tmp_path / "b"
    replace_text(path, "one")
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, call=call: (done.append((name, *args)), call(*args))[1])

    def fill(file):
        file.write(b"two")
        assert path.read_text() == "one"

    replace(path, fill, previous)
    assert (path.read_text(), previous.read_text()) == ("two", "one")
    partial = tmp_path / "a.partial"
    file, *renames, folder = done
    assert (file[0], folder[0]) == ("fsync", "fsync")
    assert renames == [("replace", path, previous), ("replace", partial, path)]
    assert not partial.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_a_failure_leaves_everything_as_it_was(tmp_path, error):
    replace_text(tmp_path / "a", "one")

    def fill(file):
        file.write(b"two")
        raise error

    expected = UserError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        replace(tmp_path / "a", fill, tmp_path / "b")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "one")]


@contextmanager
def limited_files(size):
    """Limit this process's files to `size` bytes. Writes then fail as on a full disk, with another error number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def tiny_disk(tmp_path):
    """A folder on a file system of 6 MiB, and a function that remounts it read-only (`ro`) or writable (`rw`)."""
    folder = tmp_path / "tiny"
    folder.mkdir()

    def mount(*options):
        return run("mount", *options, folder)[0]

    if sys.platform != "linux" or os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=6m", "tmpfs") != 0:
        pytest.skip("requires permission to mount")
    yield folder, lambda mode: mount("-o", f"remount,{mode}")
    assert run("umount", folder)[0] == 0


def run_of(root, *overrides, name="run", epochs=3):
    return build_trainer(settings(root, "LOG.WANDB", "False", *overrides, name=name, epochs=epochs))


def test_a_checkpoint_that_is_too_large_for_the_disk(tmp_path):
    path = tmp_path / "c.pth"
    checkpoint.save({"model": torch.zeros(10)}, path)
    with limited_files(100_000), pytest.raises(UserError, match=r"cannot write to .*c\.pth \(File too large\)"):
        checkpoint.save({"model": torch.ones(100_000)}, path, tmp_path / "previous.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth"]
    assert torch.equal(checkpoint.read_checkpoint(path)["model"], torch.zeros(10))


def check_stopped_by(spoil, run):
    """Call `spoil` before the second epoch is saved. The error is one line, and the first epoch's files are intact."""
    save, calls = run.save, []

    def second_time_spoilt():
        calls.append(1)
        if len(calls) == 2:
            spoil()
        save()

    run.save = second_time_spoilt
    with pytest.raises(UserError, match="cannot write to .*earlier files are unchanged") as error:
        run.train()
    assert "\n" not in str(error.value)
    for name in ("latest.pth", "best.pth", "student_best.pth", "student_latest.pth"):
        checkpoint.read_checkpoint(run.folder.path / name)
    assert checkpoint.read_checkpoint(run.folder.latest)["epoch"] == 1
    assert not list(run.folder.path.glob("*.partial"))


def test_a_run_on_a_full_disk(image_folder, tiny_disk):
    disk, _ = tiny_disk
    whole = run_of(image_folder, name="whole")
    whole.train()
    filler = disk / "filler"

    def fill():
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))

    def make():
        return run_of(image_folder, "LOG.PREFIX", str(disk))

    check_stopped_by(fill, make())
    # resuming while the disk is full does not damage anything either
    before = {path.name: path.read_bytes() for path in (disk / "run").iterdir() if path.suffix in (".pth", ".yaml")}
    with pytest.raises(UserError, match=r"cannot write to .* \(No space left on device\)"):
        make().train(resume=True)
    assert {path.name: path.read_bytes() for path in (disk / "run").iterdir() if path.name in before} == before
    filler.unlink()
    again = make()
    again.train(resume=True)
    assert differences(whole.folder.path, again.folder.path) == []
    assert len(rows(again)) == 3


def test_a_folder_that_becomes_read_only_in_a_run(image_folder, monkeypatch):
    path_open = Path.open

    def refused(path, mode="r", *args, **kwargs):
        if mode[0] != "r":
            raise OSError(errno.EROFS, "Read-only file system")
        return path_open(path, mode, *args, **kwargs)

    check_stopped_by(lambda: monkeypatch.setattr(Path, "open", refused), run_of(image_folder))


def test_a_folder_that_is_read_only_at_the_start(image_folder, tiny_disk):
    disk, remount = tiny_disk
    whole = run_of(image_folder, name="whole")
    whole.train()
    on_disk = ["LOG.PREFIX", str(disk)]
    run_of(image_folder, *on_disk, epochs=2).train()
    before = {path.name: path.read_bytes() for path in (disk / "run").iterdir() if path.is_file()}
    assert remount("ro") == 0
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"cannot write to .*run \(Read-only file system\)"):
            run_of(image_folder, *on_disk).train(**how)
    assert remount("rw") == 0
    assert {path.name: path.read_bytes() for path in (disk / "run").iterdir() if path.is_file()} == before
    again = run_of(image_folder, *on_disk)
    again.train(resume=True)
    assert differences(whole.folder.path, again.folder.path) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(image_folder, tmp_path):
    (tmp_path / "output").mkdir(mode=0o555)
    with pytest.raises(UserError, match=r"cannot write to .* \(Permission denied\)"):
        run_of(image_folder).train()


def test_a_prefix_that_is_a_file(image_folder, tmp_path):
    (tmp_path / "output").write_text("")
    with pytest.raises(UserError, match=r"cannot write to output/run \(Not a directory\)"):
        run_of(image_folder).train()


def test_what_a_killed_run_was_writing_is_cleaned_up(image_folder):
    run = run_of(image_folder, epochs=1)
    run.train()
    left = [run.folder.path / "latest.pth.partial", run.folder.tensorboard / "events.partial"]
    for path in left:
        path.write_bytes(b"half")
    run_of(image_folder, epochs=2).train(resume=True)
    assert not [path for path in left if path.exists()]
