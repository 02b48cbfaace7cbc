"""Unusable images: named, counted, and refused or left out, both in memory and streamed; dead workers."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller import cli
from mdistiller.dataset import StreamLoader, get_dataset, get_val_loader
from mdistiller.dataset.loading import image_check
from mdistiller.errors import UserError, dead_worker
from tests.conftest import REPO, make_image_folder
from tests.processes import run_python

Make = Callable[..., Any]
GIVEN = {"INPUT_SIZE": 16, "MEAN": [0.5, 0.5, 0.5], "STD": [0.25, 0.25, 0.25]}
HOLDERS = [{"NUM_WORKERS": 2}, {"IN_MEMORY": "no"}, {"IN_MEMORY": "no", "NUM_WORKERS": 2}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "set", train=6, val=3)


@pytest.fixture
def load(make_cfg: Make, root: Path) -> Make:
    return lambda **keys: get_dataset(make_cfg(**{"TYPE": "imagefolder", "ROOT": str(root), **GIVEN, **keys}), "cpu")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def claimed_png(width: int, height: int) -> bytes:
    """Return a PNG of a hundred bytes whose header claims this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


PNG = encoded(noise(16, 16, 3))
JPEG = encoded(noise(64, 64, 3), "JPEG")
FAULTY: Dict[str, bytes] = {
    "empty": b"",
    "text": b"not a picture\n",
    "truncated png": PNG[:200],
    "truncated jpeg": JPEG[: len(JPEG) // 2],
    "flipped bits": PNG[:100] + bytes(255 - b for b in PNG[100:140]) + PNG[140:],
    "16 bits": encoded(Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16))),
    "32-bit floats": encoded(Image.fromarray(np.zeros((16, 16), dtype=np.float32)), "TIFF"),
    "a bomb": claimed_png(50_000, 50_000),
    "a small bomb": claimed_png(10_000, 10_000),
    "a thread": encoded(noise(1, 3000, 3)),
    "html": b"<html><body>404 Not Found</body></html>",
}
REASONS = {
    "16 bits": "more than 8 bits a channel, mode I;16.*",
    "a bomb": r"Image size \(2500000000 pixels\) exceeds limit.*",  # Pillow's own
    "a small bomb": "10000×10000 px, more than 89478485 pixels",
    "a thread": "3000×1 px, one side more than 100 times the other",
}
CONVERTED = {
    "L": encoded(noise(16, 16)),
    "P": encoded(noise(16, 16, 3).quantize(8)),
    "RGBA": encoded(noise(16, 16, 4)),
    "LA": encoded(noise(16, 16, 4).convert("LA")),
    "1": encoded(noise(16, 16).convert("1")),
    "CMYK": encoded(noise(16, 16, 4).convert("RGB").convert("CMYK"), "JPEG"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("keys", HOLDERS[:2])
@pytest.mark.parametrize("kind", list(FAULTY))
def test_each_fault_is_refused_by_name(load: Make, root: Path, kind: str, keys: Any) -> None:
    (root / "train" / "class_1" / "3.png").write_bytes(FAULTY[kind])
    reason = REASONS.get(kind, ".+")
    with pytest.raises(UserError, match=rf"the image .*train/class_1/3\.png \({reason}\); replace") as caught:
        load(**keys)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("DATASET.CORRUPT skip")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("keys", HOLDERS)
def test_all_of_them_are_left_out(
    load: Make, root: Path, collect: Make, caplog: pytest.LogCaptureFixture, keys: Any
) -> None:
    for number, content in enumerate(FAULTY.values()):
        (root / "train" / f"class_{number % 3}" / f"x{number}.png").write_bytes(content)
    with caplog.at_level(logging.INFO, logger="mdistiller"):
        train, val, num_data, _ = load(CORRUPT="skip", **keys)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"left out {len(FAULTY)} of {18 + len(FAULTY)} training images that cannot be read: {root}/train/cl"
    )
    assert line.endswith(f"and {len(FAULTY) - 3} more")
    assert (num_data, train.num_images, len(train.targets), val.num_images) == (18, 18, 18, 9)
    seen = collect(train)
    assert sorted(seen["index"].tolist()) == list(range(18))
    assert torch.equal(train.targets.cpu()[seen["index"]], seen["target"])


@pytest.mark.parametrize("keys", HOLDERS)
@pytest.mark.parametrize("kind", list(CONVERTED))
def test_other_kinds_are_converted_and_counted(
    load: Make, root: Path, caplog: pytest.LogCaptureFixture, kind: str, keys: Any
) -> None:
    for number in (1, 4):
        (root / "train" / "class_0" / f"{number}.png").write_bytes(CONVERTED[kind])
    with caplog.at_level(logging.INFO, logger="mdistiller"):
        assert load(**keys)[2] == 18
    assert [r.getMessage() for r in caplog.records] == [f"2 of 18 training images are converted to RGB (2 {kind})"]


@pytest.fixture
def five_faults(root: Path) -> List[Path]:
    paths = [root / "train" / f"class_{n % 3}" / f"{n}.png" for n in range(4)] + [root / "val" / "class_2" / "0.png"]
    for path in paths:
        path.write_bytes(PNG[:150])
    return paths


@pytest.mark.parametrize("keys", HOLDERS)
def test_all_faults_of_a_split_are_counted_at_once(load: Make, five_faults: List[Path], keys: Any) -> None:
    with pytest.raises(UserError, match=r"cannot read 4 of 18 images: (.*\(.*\); ){2}.* and 1 more; replace, convert"):
        load(**keys)
    with pytest.raises(UserError, match=r"cannot read 4 of 18 images"):
        load(MEAN=None, STD=None, **keys)  # also when statistics are measured first


def test_both_loaders_leave_the_same_out(load: Make, five_faults: List[Path], collect: Make) -> None:
    for keys in ({}, {"TRAIN_FRACTION": 0.6}, {"MEAN": None, "STD": None}, {"MEAN": None, "STD": None}):
        memory, stream = load(CORRUPT="skip", **keys), load(CORRUPT="skip", IN_MEMORY="no", NUM_WORKERS=2, **keys)
        assert isinstance(stream[0], StreamLoader) and not isinstance(memory[0], StreamLoader)
        assert memory[2] == stream[2] == memory[0].num_images
        assert memory[0].info == stream[0].info
        for one, other in zip(memory[:2], stream[:2]):
            a, b = collect(one), collect(other)
            assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_a_part_is_the_same_with_statistics_measured_and_remembered(
    load: Make, five_faults: List[Path], collect: Make
) -> None:
    keys = {"CORRUPT": "skip", "TRAIN_FRACTION": 0.5, "MEAN": None, "STD": None}
    first, second = collect(load(**keys)[0]), collect(load(**keys)[0])
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_class_of_which_nothing_is_left(load: Make, root: Path) -> None:
    for path in (root / "train" / "class_1").iterdir():
        path.write_bytes(b"")
    for keys in ({}, {"IN_MEMORY": "no"}):
        with pytest.raises(
            UserError, match=r"no training image can be read in 1 of the classes, for example .*class_1/0\.png \("
        ):
            load(CORRUPT="skip", **keys)


def test_a_streamed_set_is_checked_once(
    load: Make, root: Path, five_faults: List[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: List[int] = []
    real = image_check._read
    monkeypatch.setattr(
        image_check, "_read", lambda split, indices, n: read.append(len(indices)) or real(split, indices, n)
    )
    keys = {"CORRUPT": "skip", "IN_MEMORY": "no"}
    assert load(**keys)[2] == 14
    assert read == [18, 9]
    assert load(**keys)[2] == 14
    assert read == [18, 9, 4, 1], "the faulty are tried again: a disk may have been away"
    five_faults[0].write_bytes(PNG)
    assert load(**keys)[2] == 15
    assert read[4:] == [18, 1]


def test_what_is_remembered_may_be_damaged(load: Make, five_faults: List[Path], cache: Path) -> None:
    keys = {"CORRUPT": "skip", "IN_MEMORY": "no"}
    load(**keys)
    for file in cache.glob("statistics/*.json"):
        for damage in (("unusable", '"x": 1, "gone"'), ('"modes": {}', '"modes": [3]'), ("[", "[-7, 999, ")):
            text = file.read_text()
            file.write_text(text.replace(*damage))
            assert load(**keys)[2] == 14
            file.write_text(text)


def test_unchecked_is_met_in_training_all_of_a_batch_at_once(load: Make, five_faults: List[Path]) -> None:
    train = load(IN_MEMORY="no", CORRUPT="unchecked", NUM_WORKERS=1)[0]
    with pytest.raises(UserError, match=r"cannot read 4 of 18 images: .* and 1 more; replace"):
        list(train)
    five_faults[0].unlink()
    with pytest.raises(UserError, match=r"cannot read 4 of 18 images: .*No such file"):
        list(train)


def test_evaluation_is_its_own_check(
    make_cfg: Make, root: Path, five_faults: List[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"TYPE": "imagefolder", "ROOT": str(root), "IN_MEMORY": "no", **GIVEN}
    assert get_val_loader(make_cfg(CORRUPT="skip", **keys), "cpu").num_images == 8
    monkeypatch.setattr(image_check, "_read", lambda *args: pytest.fail("read twice"))
    with pytest.raises(UserError, match=r"cannot read the image .*val/class_2/0\.png"):
        list(get_val_loader(make_cfg(**keys), "cpu"))


def test_a_link_to_nowhere(load: Make, root: Path) -> None:
    (root / "train" / "class_0" / "x.png").symlink_to(root / "nowhere.png")
    for keys in ({}, {"IN_MEMORY": "no"}, {"MEAN": None, "STD": None}):
        with pytest.raises(UserError, match=r"cannot read the image .*class_0/x\.png \(.*No such file"):
            load(**keys)


def test_more_than_memory_holds(load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **keys: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(UserError, match="18 images do not fit in memory .no room.; set DATASET.IN_MEMORY no"):
        load(INPUT_SIZE=4096, IN_MEMORY="yes", AUGMENT="none")


# --- worker processes


def test_a_dead_worker_is_one_line_wherever_the_main_process_is(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.\nIt is possible that shm ran out")

    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    err = capsys.readouterr().err
    assert err.startswith("error: a DataLoader worker died (DataLoader worker (pid 7) is killed by signal: Bus")
    assert err.count("\n") == 1
    with pytest.raises(RuntimeError, match="another"):
        cli.run(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_a_killed_worker_ends_a_training_with_status_2(root: Path, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os, signal\nfrom PIL import Image\nfrom mdistiller.dataset.loading import stream_loader\n"
        "class Reader(stream_loader._Reader):\n"
        "    def __getitem__(self, step):\n"
        "        if self.augment != 'none': os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().__getitem__(step)\n"
        "stream_loader._Reader = Reader\n"
    )
    (tmp_path / "run.yaml").write_text(
        f"PLUGINS: [deadly.py]\nDATASET: {{TYPE: imagefolder, ROOT: '{root}', INPUT_SIZE: 16, IN_MEMORY: 'no'}}\n"
        "SOLVER: {EPOCHS: 2, BATCH_SIZE: 4, SCHEDULE: linear}\nDISTILLER: {STUDENT: resnet8}\nLOG: {WANDB: False}\n"
    )
    status, _, err = run_python(REPO / "tools/train.py", "--cfg", "run.yaml")
    assert status == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith("error: a DataLoader worker died (DataLoader worker")


def test_other_errors_are_not_explained_away() -> None:
    assert dead_worker(RuntimeError("CUDA error")) == ""
    assert dead_worker(ValueError("DataLoader worker")) == ""


def test_a_name_in_no_encoding_can_be_printed(load: Make, root: Path, capfd: pytest.CaptureFixture) -> None:
    name = os.fsdecode(b"caf\xe9\n.png")
    (root / "train" / "class_0" / name).write_bytes(b"")
    for keys in ({}, {"IN_MEMORY": "no"}):
        with pytest.raises(UserError) as caught:
            load(**keys)
        print(caught.value)
        assert "class_0/caf??.png (" in capfd.readouterr().out
