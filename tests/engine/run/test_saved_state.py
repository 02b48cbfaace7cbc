"""States that are damaged, and what stands in for them."""

import errno
import logging
import random
import zipfile

import pytest
import torch

from mdistiller.engine import checkpoint as ck
from mdistiller.engine.build import build_trainer
from mdistiller.engine.run.saved_state import read_latest
from mdistiller.errors import UserError
from tests.engine.test_trainer import rows, settings
from tests.soak.kill_and_resume import differences


def run_of(root, name="run", epochs=3):
    return build_trainer(settings(root, "LOG.WANDB", "False", name=name, epochs=epochs))


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def middle_of_a_tensor(path):
    """Where the largest entry of the archive lies in the file."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
        content = archive.read(entry)
    return path.read_bytes().index(content) + len(content) // 2


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "missing", "text"])
def test_the_state_before_stands_in(image_folder, caplog, damage):
    whole = run_of(image_folder, "whole")
    whole.train()
    part = run_of(image_folder, epochs=2)
    part.train()
    latest, content = part.folder.latest, part.folder.latest.read_bytes()
    if damage == "bit":
        flip(latest, middle_of_a_tensor(latest))
        torch.load(latest, weights_only=True)  # which sees nothing
    elif damage == "missing":
        latest.unlink()
    else:
        latest.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    caplog.set_level(logging.INFO, "mdistiller")
    resumed = run_of(image_folder)
    resumed.train(resume=True)
    (note,) = [record.message for record in caplog.records if "latest" in record.message]
    assert note.startswith(f"note: {'' if damage == 'missing' else 'checkpoint '}{latest} ")
    assert note.endswith("; resuming from latest.previous.pth")
    if damage != "missing":
        assert "kept as latest.damaged.pth" in note
    assert "resumed after epoch 1 of 3" in part.folder.worklog.read_text()
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert [row["epoch"] for row in rows(resumed)] == [1, 2, 3]
    assert ck.read_checkpoint(part.folder.previous)["epoch"] == 2  # a damaged file never becomes the previous one


def test_two_damaged_states_are_one_line(image_folder):
    run_of(image_folder, epochs=2).train()
    part = run_of(image_folder)
    for path in (part.folder.latest, part.folder.previous):
        flip(path, middle_of_a_tensor(path))
    before = part.folder.latest.read_bytes()
    expected = (
        r"--resume: checkpoint output/run/latest.pth is damaged \(Bad CRC-32 .*, and latest.previous.pth cannot be"
    )
    with pytest.raises(UserError, match=expected + r" read either; copy best.pth to latest.pth, or start again"):
        part.train(resume=True)
    assert part.folder.latest.read_bytes() == before
    part.folder.latest.write_bytes(part.folder.best.read_bytes())
    run_of(image_folder).train(resume=True)
    assert [row["epoch"] for row in rows(part)] == [1, 2, 3]


def test_any_bit_that_matters_is_noticed(tmp_path):
    """Flipped bits all over the file: it is refused, or what is read is what was written."""
    path = tmp_path / "c.pth"
    torch.manual_seed(0)
    content = {"model": {"a": torch.randn(300), "b": torch.arange(64)}, "epoch": 7, "name": "text"}
    ck.save(content, path)
    good, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        path.write_bytes(good)
        flip(path, draw.randrange(len(good)), draw.randrange(8))
        try:
            read = ck.read_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert torch.equal(read["model"]["a"], content["model"]["a"])
        assert torch.equal(read["model"]["b"], content["model"]["b"])
        assert (read["epoch"], read["name"]) == (7, "text")
    assert refused > 200


def test_a_students_file_is_checked_and_stays_plain(image_folder):
    run = run_of(image_folder, epochs=1)
    run.train()
    path = run.folder.student_best
    assert zipfile.ZipFile(path).testzip() is None
    assert set(torch.load(path, weights_only=True)) >= {"model", "arch"}
    flip(path, middle_of_a_tensor(path))
    with pytest.raises(UserError, match=r"student_best.pth is damaged \(Bad CRC-32"):
        ck.read_checkpoint(path)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="PyTorch 2.6 or later")
def test_a_file_without_checksums_loads(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"a": torch.ones(5)}}, tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        assert archive.testzip() is not None  # their places are there, and empty
    assert torch.equal(ck.read_checkpoint(tmp_path / "c.pth")["model"]["a"], torch.ones(5))


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "no", "latest")]
)
def test_a_state_that_cannot_be_read_now_is_no_damaged_one(image_folder, monkeypatch, error):
    run = run_of(image_folder, epochs=2)
    run.train()
    content = run.folder.latest.read_bytes()

    def load(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        with pytest.raises(UserError, match=r"latest.pth cannot be read \("):
            run_of(image_folder).train(resume=True)
        assert run.folder.latest.read_bytes() == content
        run.folder.latest.unlink()  # then the state before is read, and must not be given up either
        with pytest.raises(UserError, match=r"latest.previous.pth cannot be read \("):
            run_of(image_folder).train(resume=True)
    run.folder.latest.write_bytes(content)
    assert not run.folder.damaged.exists()
    assert read_latest(run.folder)["epoch"] == 2


@pytest.mark.parametrize(
    ("part", "damage"), [("python", {"state": 1}), ("python", []), ("numpy", {"state": 1}), ("torch", {"state": 1})]
)
def test_a_damaged_random_state_is_one_line(image_folder, part, damage):
    run = run_of(image_folder, epochs=2)
    run.train()
    state = ck.read_checkpoint(run.folder.latest)
    state["random"][0][part] = damage
    ck.save(state, run.folder.latest)
    with pytest.raises(UserError, match="is not a valid training state .*: its random state cannot be used"):
        run_of(image_folder).train(resume=True)


def test_own_files_with_a_similar_name_are_kept(image_folder):
    run = run_of(image_folder, epochs=1)
    run.train()
    own = run.folder.path / "epoch_40_good.pth"
    own.write_bytes(b"mine")
    kept = run.folder.kept(7)
    kept.write_bytes(b"of the run")
    run_of(image_folder, epochs=1).train(overwrite=True)
    assert own.read_bytes() == b"mine" and not kept.exists()


def test_neither_state_is_there(image_folder):
    run = run_of(image_folder, epochs=1)
    run.train()
    run.folder.latest.unlink()
    with pytest.raises(UserError, match="no run to continue"):
        run_of(image_folder).train(resume=True)


def test_the_previous_state_is_read_only_where_it_must_be(image_folder):
    run = run_of(image_folder, epochs=2)
    run.train()
    run.folder.previous.write_bytes(b"")
    assert read_latest(run.folder)["epoch"] == 2
