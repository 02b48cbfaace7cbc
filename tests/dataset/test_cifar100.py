"""CIFAR-100's files: read without running anything, compared with their sums, downloaded where they are not there."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch

from mdistiller.dataset import DeviceLoader, cifar100, get_dataset
from mdistiller.errors import UserError

Make = Callable[..., Any]
NAMES = ["apple", "bear", "can"]


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3072), np.uint8)


def content() -> Dict[str, Any]:
    return {
        "train": {"data": pixels(6), "fine_labels": [1, 0, 2, 1, 0, 2]},
        "test": {"data": pixels(2), "fine_labels": [1, 2]},
        "meta": {"fine_label_names": NAMES},
    }


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function(**contents or bytes by name) that writes the files, whose sums then count as published."""

    def run(**changed: Any) -> Path:
        folder = tmp_path / "cifar-100-python"
        folder.mkdir(exist_ok=True)
        for name, part in {**content(), **changed}.items():
            data = part if isinstance(part, bytes) else pickle.dumps(part)
            (folder / name).write_bytes(data)
            monkeypatch.setitem(cifar100.MD5, name, hashlib.md5(data).hexdigest())
        return folder

    return run


@pytest.fixture
def load(make_cfg: Make, tmp_path: Path) -> Make:
    return lambda **keys: get_dataset(make_cfg(ROOT=str(tmp_path), **keys), "cpu")


def test_images_labels_and_classes(write: Make, load: Make, collect: Make, capfd: pytest.CaptureFixture) -> None:
    write()
    train, val, num_data, num_classes = load()
    assert (num_data, num_classes, val.num_images) == (6, 3, 2)
    assert train.info.classes == tuple(NAMES) and train.info.name == "cifar100" and train.info.input_size == 32
    assert train.info.mean == (0.5071, 0.4867, 0.4408) and train.info.std == (0.2675, 0.2565, 0.2761)
    assert isinstance(train, DeviceLoader) and isinstance(val, DeviceLoader)
    assert train.targets.tolist() == [1, 0, 2, 1, 0, 2] and collect(val)["target"].tolist() == [1, 2]
    images = torch.from_numpy(pixels(2)).view(2, 3, 32, 32) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (train.info.mean, train.info.std))
    torch.testing.assert_close(collect(val)["image"], (images - mean) / std)
    assert capfd.readouterr() == ("", "")


def test_another_size_and_statistics(write: Make, load: Make) -> None:
    write()
    train, val, _, _ = load(INPUT_SIZE=48, MEAN=[0.5] * 3, STD=[0.25] * 3)
    assert next(iter(train))["image"].shape == (6, 3, 48, 48)
    assert next(iter(val))["image"].shape == (2, 3, 48, 48)
    assert train.info.input_size == 48 and train.info.mean == (0.5, 0.5, 0.5)


def of_python_2(data: np.ndarray, labels: bytes) -> bytes:
    """Return the pickle of protocol 2 that Python 2 wrote, with byte strings, as the released files are."""
    rows, columns = data.shape
    raw = data.tobytes()
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01"
        + b"(M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"t"
        + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    return b"\x80\x02}(U\x04data" + array + b"U\x0bfine_labels](" + b"".join(b"K%c" % n for n in labels) + b"eu."


def test_the_format_of_the_released_files(write: Make, load: Make) -> None:
    write(train=of_python_2(pixels(3), bytes([2, 0, 1])))
    train = load(PADDING=0)[0]
    assert train.targets.tolist() == [2, 0, 1]
    assert torch.equal(train.images, torch.from_numpy(pixels(3)).view(3, 3, 32, 32).permute(0, 2, 3, 1))


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


LABELS = [1, 0, 2, 1, 0]
BAD = {
    "hostile": ({"train": {"data": Hostile(), "fine_labels": LABELS}}, r"train refused.*\(it calls posix\.system\)"),
    "hostile meta": ({"meta": Hostile()}, r"meta refused.*\(it calls posix\.system\)"),
    "builtins": ({"train": b"cbuiltins\neval\n(S'1'\ntR."}, r"\(it calls builtins\.eval\)"),
    "numpy's own loader": ({"train": b"cnumpy\nload\n(S'x'\ntR."}, r"\(it calls numpy\.load\)"),
    "truncated": ({"test": pickle.dumps(content()["test"])[:300]}, "test refused, it is not a pickle"),
    "empty": ({"meta": b""}, "meta refused, it is not a pickle"),
    "no dictionary": ({"train": [1]}, "train holds a list; expected a dictionary"),
    "no data": ({"train": {"fine_labels": LABELS}}, "train holds no rows of 3072 bytes below 'data'"),
    "floats": ({"train": {"data": np.zeros((5, 3072)), "fine_labels": LABELS}}, "no rows of 3072 bytes"),
    "too few labels": ({"train": {"data": pixels(6), "fine_labels": LABELS}}, r"6 images and 5 labels"),
    "no labels": ({"test": {"data": pixels(2)}}, "2 images and no list of labels"),
    "labels that do not fit": (
        {"train": {"data": pixels(5), "fine_labels": [0, 1, 3, -1, "2"]}},
        "train holds 3 of 5 labels, first 3, that are not of the 3 classes",
    ),
    "no classes": ({"meta": {"fine_label_names": []}}, "meta holds no names of classes"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_files(write: Make, load: Make, tmp_path: Path, case: str) -> None:
    changed, message = BAD[case]
    write(**changed)
    with pytest.raises(UserError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_a_file_that_was_not_published_is_not_even_opened_as_a_pickle(write: Make, load: Make) -> None:
    folder = write()
    (folder / "train").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="train is damaged or not CIFAR-100's .MD5 .*; remove it, and it is downloaded"):
        load()


def test_the_archive_is_unpacked_once(write: Make, load: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write()
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-100-python")
    monkeypatch.setitem(cifar100.MD5, archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar100, "download", lambda *args: pytest.fail("the archive is there"))
    for name in ("train", "meta"):
        (folder / name).unlink()
    assert load()[2] == 6
    archive.write_bytes(archive.read_bytes()[:400])
    assert load()[2] == 6
    (folder / "train").unlink()
    with pytest.raises(UserError, match=r"could not be downloaded \(.*tar\.gz is damaged .*MD5") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_without_network(load: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "URL", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html" in message
    assert message.endswith(f"{tmp_path}/cifar-100-python/")
