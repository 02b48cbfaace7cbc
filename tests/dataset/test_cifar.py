"""CIFAR-10 and CIFAR-100: opened only if the MD5 sums are correct, downloaded if missing."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Type

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from mdistiller.dataset import DeviceLoader, cifar, cifar10, cifar100, get_dataset, get_val_loader
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from tests.conftest import REPO

Make = Callable[..., Any]
NAMES = ["apple", "bear", "can"]


class Published(NamedTuple):
    """One of the two sets: the names and keys of its files."""

    name: str
    data: Type[CIFAR10]
    module: Any
    labels: str
    train: List[str]


SETS = (
    Published("cifar10", CIFAR10, cifar10, "labels", [f"data_batch_{number}" for number in range(1, 6)]),
    Published("cifar100", CIFAR100, cifar100, "fine_labels", ["train"]),
)


@pytest.fixture(params=SETS, ids=lambda published: published.name)
def published(request: pytest.FixtureRequest) -> Published:
    return request.param


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3072), np.uint8)


@pytest.fixture
def write(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function(**contents or bytes by name) that writes the files and publishes their MD5 sums.

    The training images are spread over all training files of the set.
    """
    data = published.data
    (test,), meta = [name for name, _ in data.test_list], dict(data.meta)
    parts = np.array_split(np.arange(6), len(published.train))
    content: Dict[str, Any] = {
        name: {"data": pixels(6)[part], published.labels: [[1, 0, 2, 1, 0, 2][number] for number in part]}
        for name, part in zip(published.train, parts)
    }
    content.update({test: {"data": pixels(2), published.labels: [1, 2]}, meta["filename"]: {meta["key"]: NAMES}})

    def run(**changed: Any) -> Path:
        folder = tmp_path / data.base_folder
        folder.mkdir(exist_ok=True)
        sums = {}
        for name, part in {**content, **changed}.items():
            file = part if isinstance(part, bytes) else pickle.dumps(part)
            (folder / name).write_bytes(file)
            sums[name] = hashlib.md5(file).hexdigest()
        monkeypatch.setattr(data, "train_list", [[name, sums[name]] for name in published.train])
        monkeypatch.setattr(data, "test_list", [[test, sums[test]]])
        monkeypatch.setattr(data, "meta", {**meta, "md5": sums[meta["filename"]]})
        return folder

    return run


@pytest.fixture
def load(published: Published, make_cfg: Make, tmp_path: Path) -> Make:
    return lambda **keys: get_dataset(make_cfg(TYPE=published.name, ROOT=str(tmp_path), **keys), "cpu")


def test_images_labels_and_classes(
    published: Published, write: Make, load: Make, collect: Make, capfd: pytest.CaptureFixture
) -> None:
    write()
    train, val, num_data, num_classes = load()
    assert (num_data, num_classes, val.num_images) == (6, 3, 2)
    info = train.info
    assert (info.name, info.classes, info.input_size) == (published.name, tuple(NAMES), 32)
    assert (info.mean, info.std) == (published.module.MEAN, published.module.STD)
    assert isinstance(train, DeviceLoader) and isinstance(val, DeviceLoader)
    assert train.targets.tolist() == [1, 0, 2, 1, 0, 2] and collect(val)["target"].tolist() == [1, 2]
    images = torch.from_numpy(pixels(2)).view(2, 3, 32, 32) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (info.mean, info.std))
    torch.testing.assert_close(collect(val)["image"], (images - mean) / std)
    stored = train.images[:, 4:-4, 4:-4].permute(0, 3, 1, 2).reshape(6, 3072)  # without the margin for crops
    assert torch.equal(stored, torch.from_numpy(pixels(6)))
    assert capfd.readouterr() == ("", "")


def test_each_file_is_verified_once(
    published: Published, write: Make, load: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    verified: List[str] = []

    def record(path: Any, md5: Any = None) -> bool:
        verified.append(os.path.basename(path))
        return check_integrity(path, md5)

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", record)
    load()
    meta = published.data.meta["filename"]  # of a kilobyte; torchvision verifies it whenever it is read
    assert sorted(name for name in verified if name != meta) == sorted(
        {path.name for path in folder.iterdir()} - {meta}
    )


def test_statistics() -> None:
    assert (cifar10.MEAN, cifar10.STD) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert (cifar100.MEAN, cifar100.STD) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def test_another_size_and_statistics(write: Make, load: Make) -> None:
    write()
    train, val, _, _ = load(INPUT_SIZE=48, MEAN=[0.5] * 3, STD=[0.25] * 3)
    assert next(iter(train))["image"].shape == (6, 3, 48, 48)
    assert next(iter(val))["image"].shape == (2, 3, 48, 48)
    assert train.info.input_size == 48 and train.info.mean == (0.5, 0.5, 0.5)


def test_evaluation_reads_the_test_images_alone(
    published: Published, write: Make, make_cfg: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    read = cifar._read

    def test_only(*args: Any, train: bool) -> Any:
        assert not train
        return read(*args, train=train)

    monkeypatch.setattr(cifar, "_read", test_only)
    assert get_val_loader(make_cfg(TYPE=published.name, ROOT=str(tmp_path)), "cpu").num_images == 2


def of_python_2(data: np.ndarray, key: str, labels: bytes) -> bytes:
    """Return the pickle of protocol 2 that Python 2 wrote, with byte strings, as the released files are."""
    rows, columns = data.shape
    raw, name = data.tobytes(), key.encode()
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01"
        + b"(M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"t"
        + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    end = b"](" + b"".join(b"K%c" % label for label in labels) + b"eu."
    return b"\x80\x02}(U\x04data" + array + b"U" + bytes([len(name)]) + name + end


def test_the_format_of_the_released_files(published: Published, write: Make, load: Make) -> None:
    empty = {"data": pixels(0).reshape(0, 3072), published.labels: []}
    files = dict.fromkeys(published.train[1:], empty)
    write(**{published.train[0]: of_python_2(pixels(3), published.labels, bytes([2, 0, 1]))}, **files)
    train = load(PADDING=0)[0]
    assert train.targets.tolist() == [2, 0, 1]
    assert torch.equal(train.images, torch.from_numpy(pixels(3)).view(3, 3, 32, 32).permute(0, 2, 3, 1))


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("which", ["train", "test", "meta"])
def test_a_file_that_was_not_published_is_not_opened(
    published: Published, write: Make, load: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    folder = write()
    names = {
        "train": published.train[0],
        "test": published.data.test_list[0][0],
        "meta": published.data.meta["filename"],
    }
    monkeypatch.chdir(tmp_path)
    (folder / names[which]).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert f"in {folder} are damaged or cannot be read (an MD5 sum is not the published one); remove" in message
    assert "\n" not in message
    assert not (tmp_path / "owned").exists()


def test_a_file_that_cannot_be_read(
    published: Published, write: Make, load: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()

    def refuse(self: Any) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(published.data, "_load_meta", refuse)
    with pytest.raises(UserError, match=r"are damaged or cannot be read \(Permission denied\); remove"):
        load()


def test_the_archive_is_unpacked_once(
    published: Published, write: Make, load: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    archive = tmp_path / published.data.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(published.data, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar, "download", lambda *args: pytest.fail("the archive is there"))
    for name in (published.train[0], published.data.meta["filename"]):
        (folder / name).unlink()
    assert load()[2] == 6
    archive.write_bytes(archive.read_bytes()[:400])
    assert load()[2] == 6
    (folder / published.train[0]).unlink()
    with pytest.raises(UserError, match=r"is incomplete in .*: .*is damaged, remove it: its MD5 sum is not ") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_without_network(published: Published, load: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = published.data
    monkeypatch.setattr(data, "url", f"http://127.0.0.1:9/{data.filename}")
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert f"{data.filename} from https://www.cs.toronto.edu/~kriz/cifar.html" in message
    assert message.endswith(f"and unpack it in {tmp_path}")


@pytest.mark.parametrize("path", sorted((REPO / "configs/cifar10").glob("*/*.yaml")), ids=lambda path: path.parent.name)
def test_configs_of_cifar10(path: Path) -> None:
    cfg = load_cfg(str(path))
    assert (cfg.DATASET.TYPE, cfg.SOLVER.EPOCHS, cfg.SOLVER.LR) == ("cifar10", 240, 0.05)
    teacher = load_cfg(str(REPO / "configs/cifar10/vanilla/resnet32x4.yaml"))
    if cfg.DISTILLER.TYPE != "NONE":
        assert cfg.DISTILLER.TEACHER == teacher.DISTILLER.STUDENT
        weights = cfg.DISTILLER.TEACHER_WEIGHTS
        assert weights == f"output/{teacher.EXPERIMENT.NAME}/student_best.pth"
