"""Shards: written from image folders, read like them, checked against their index, and named where they are damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

from mdistiller.dataset import get_dataset, get_val_loader
from mdistiller.dataset.fashion_demo import fashion_demo
from mdistiller.dataset.shards.index import INDEX, scan_shard
from mdistiller.dataset.shards.write import index_shards, make_shards
from mdistiller.errors import UserError

webdataset = pytest.importorskip("webdataset")
Make = Callable[..., Any]
GIVEN = {"MEAN": [0.5, 0.5, 0.5], "STD": [0.25, 0.25, 0.25], "INPUT_SIZE": 16}


@pytest.fixture
def shards(image_folder: Path) -> Path:
    """Return shards of 12 training and 6 validation images, at most 5 in each."""
    make_shards(image_folder, image_folder.with_name("shards"), 5, num_workers=0)
    return image_folder.with_name("shards")


@pytest.fixture
def load(make_cfg: Make) -> Make:
    """Return a function(root, **DATASET keys) -> loaders."""

    def run(root: Path, **keys: Any) -> Any:
        cfg = make_cfg(**{"TYPE": "webdataset", "ROOT": str(root), **GIVEN, **keys})
        cfg.SOLVER.BATCH_SIZE = 5
        return get_dataset(cfg, "cpu")[:2]

    return run


@pytest.mark.parametrize("keys", [{"IN_MEMORY": "yes"}, {"IN_MEMORY": "no"}, {"AUGMENT": "resized_crop"}])
def test_the_batches_are_those_of_the_folder(
    load: Make, shards: Path, image_folder: Path, collect: Make, keys: Dict[str, Any]
) -> None:
    for ours, theirs in zip(load(shards, **keys), load(image_folder, TYPE="imagefolder", **keys)):
        assert ours.info.classes == theirs.info.classes == ("ant", "bee", "cat")
        for epoch in (1, 2):
            for loader in (ours, theirs):
                loader.set_epoch(epoch)
            one, other = collect(ours), collect(theirs)
            assert all(torch.equal(one[key], other[key]) for key in other)
            rest = collect(ours, len(ours) - 1)
            assert all(torch.equal(rest[key], one[key][-len(rest[key]) :]) for key in rest)


def test_statistics_and_a_part_are_those_of_the_folder(load: Make, shards: Path, image_folder: Path) -> None:
    keys = {"MEAN": None, "STD": None, "TRAIN_FRACTION": 0.5}
    for in_memory in ("yes", "no"):
        ours = load(shards, IN_MEMORY=in_memory, **keys)[0]
        theirs = load(image_folder, TYPE="imagefolder", IN_MEMORY=in_memory, **keys)[0]
        assert (ours.info.mean, ours.info.std) == (theirs.info.mean, theirs.info.std)
        assert torch.equal(ours.targets, theirs.targets) and ours.num_images == 6


def test_worker_processes_read_them(load: Make, shards: Path, collect: Make) -> None:
    one, other = (collect(load(shards, IN_MEMORY="no", NUM_WORKERS=workers)[0]) for workers in (0, 2))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_library_reads_what_is_written(shards: Path, image_folder: Path) -> None:
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    assert len(urls) == 3
    samples, tariterators = [], webdataset.tariterators
    for url in urls:
        with open(url, "rb") as stream:  # WebDataset(urls) leaves files open
            samples += tariterators.group_by_keys(tariterators.tar_file_expander([{"url": url, "stream": stream}]))
    files = sorted((image_folder / "train").glob("*/*"))
    assert [sample["png"] for sample in samples] == [file.read_bytes() for file in files]
    assert [int(sample["cls"]) for sample in samples] == [0] * 4 + [1] * 4 + [2] * 4


def test_shards_that_the_library_wrote(load: Make, tmp_path: Path, collect: Make) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    for part, numbers in (("train", range(6)), ("validation", range(6, 9)), ("test", range(1))):
        with webdataset.TarWriter(str(folder / f"set-{part}-000.tar")) as writer:
            for number in numbers:
                sample = {"__key__": f"deep/{number:04d}", "png": pictures[number], "cls": number % 3}
                writer.write({**sample, "json": {"unused": number}})
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    with pytest.raises(UserError, match=r"index.json is missing; make .* option --index"):
        load(folder)
    index_shards(folder, tmp_path / "classes.txt")
    train, val = load(folder, AUGMENT="none", MEAN=[0, 0, 0], STD=[1, 1, 1])
    assert (train.num_images, val.num_images) == (6, 3)
    seen = collect(val)
    assert seen["target"].tolist() == [0, 1, 2]
    expected = torch.from_numpy(pictures[6:]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(seen["image"], expected)


def test_the_same_images_give_the_same_files(shards: Path, image_folder: Path) -> None:
    for path in image_folder.rglob("*.png"):
        path.touch()
    again = image_folder.with_name("again")
    make_shards(image_folder, again, 5, num_workers=0)
    names = sorted(path.name for path in shards.iterdir())
    assert names == sorted(path.name for path in again.iterdir()) and INDEX in names
    assert all((shards / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_the_index_gives_classes_sizes_and_checksums(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    assert index["classes"] == ["ant", "bee", "cat"]
    assert [len(shard["labels"]) for shard in index["train"]] == [5, 5, 2]
    assert [shard["labels"] for shard in index["val"]] == [[0, 0, 1, 1, 2], [2]]
    for shard in index["train"] + index["val"]:
        content = (shards / shard["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
        with tarfile.open(shards / shard["file"]) as tar:
            assert [tar.getmember(name).offset_data for name in shard["names"]] == shard["offsets"]


def test_the_demos_images(tmp_path: Path, load: Make, make_cfg: Make, collect: Make) -> None:
    demo = fashion_demo(make_cfg(TYPE="fashion_demo")).val.subset(torch.arange(0, 2000, 100))
    for part in ("train", "val"):
        for number in range(len(demo)):
            place = tmp_path / "demo" / part / str(int(demo.targets[number]))
            place.mkdir(parents=True, exist_ok=True)
            demo.load(number).save(place / f"{number:02d}.png")
    make_shards(tmp_path / "demo", tmp_path / "shards", num_workers=0)
    val = load(tmp_path / "shards", INPUT_SIZE=32, MEAN=[0, 0, 0], STD=[1, 1, 1])[1]
    seen = collect(val)
    order = demo.targets.argsort(stable=True)
    assert torch.equal(seen["target"], demo.targets[order])
    pixels = torch.from_numpy(demo.images[order.numpy()]).permute(0, 3, 1, 2)
    assert torch.equal((seen["image"] * 255).round().byte(), pixels)


def test_a_part_is_held_out(load: Make, image_folder: Path, tmp_path: Path, make_cfg: Make) -> None:
    (image_folder / "val").rename(tmp_path / "away")
    with pytest.raises(UserError, match="val is missing"):
        make_shards(image_folder, tmp_path / "out")
    make_shards(image_folder, tmp_path / "halves", val_fraction=0.5, num_workers=0)
    train, val = load(tmp_path / "halves")
    assert (train.num_images, val.num_images) == (6, 6)
    index = tmp_path / "halves" / INDEX
    index.write_text(json.dumps({**json.loads(index.read_text()), "val": []}))
    train, val = load(tmp_path / "halves", VAL_FRACTION=0.3)
    assert (train.num_images, val.num_images) == (3, 3)
    with pytest.raises(UserError, match="has no validation images; set DATASET.VAL_FRACTION 0.1"):
        load(tmp_path / "halves")


def test_evaluation_needs_no_training_shards(shards: Path, make_cfg: Make) -> None:
    for shard in shards.glob("train-*"):
        shard.unlink()
    cfg = make_cfg(TYPE="webdataset", ROOT=str(shards), **GIVEN)
    assert get_val_loader(cfg, "cpu").num_images == 6


def cut(shards: Path) -> None:
    shard = shards / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:8000])


def flip(shards: Path) -> None:
    shard = shards / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[1540:1560] = bytes(20)  # the beginning of the first picture
    shard.write_bytes(content)


def test_a_shard_that_cannot_be_read(load: Make, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mdistiller.dataset.shards.split.sha256_of", refused)
    with pytest.raises(UserError, match=r"-00000\d.tar cannot be read \(Permission denied\)"):
        load(shards)


def test_a_name_that_is_there_twice(load: Make, shards: Path) -> None:
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for name in ("0.png", "0.png", "0.cls"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match=r"0.png is there twice; give each sample a name of its own"):
        scan_shard(shards / "train-000000.tar", 3)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize(("damage", "reason"), [(cut, "bytes instead of"), (flip, "has another checksum")])
def test_a_damaged_shard(
    load: Make, shards: Path, damage: Any, reason: str, in_memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(shards)
    with pytest.raises(UserError) as caught:
        load(shards, IN_MEMORY=in_memory)
    assert f"{shards}/train-000001.tar" in str(caught.value) and reason in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="mdistiller"):
        train = load(shards, IN_MEMORY=in_memory, CORRUPT="skip")[0]
    assert "its images are used as far as they can be read" in caplog.text
    assert "train-000001.tar/00000000" in caplog.text  # names pictures
    assert 6 < train.num_images < 12
    if in_memory == "no":
        with pytest.raises(UserError, match="train-000001.tar/"):
            list(load(shards, IN_MEMORY="no", CORRUPT="unchecked")[0])


def test_checksums_are_compared_once(load: Make, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(shards)
    monkeypatch.setattr("mdistiller.dataset.shards.split.sha256_of", lambda path: pytest.fail("read again"))
    load(shards)


def test_a_damaged_picture_is_named(load: Make, image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "train/bee/0.png").write_bytes(b"PNG")
    with pytest.raises(UserError, match="bee/0.png"):
        make_shards(image_folder, tmp_path / "out", num_workers=0)
    make_shards(image_folder, tmp_path / "out", corrupt="unchecked")
    with pytest.raises(UserError, match="train-000000.tar/000000004.png .cannot identify image file"):
        load(tmp_path / "out")
    assert load(tmp_path / "out", CORRUPT="skip")[0].num_images == 11
    make_shards(image_folder, tmp_path / "less", corrupt="skip", num_workers=0)
    assert load(tmp_path / "less")[0].num_images == 11


def change(key: str, value: Any) -> Callable[[Dict[str, Any]], None]:
    return lambda index: index["train"][0].update({key: value})


INDICES: List[Tuple[Callable[[Dict[str, Any]], Any], str]] = [
    (lambda index: index.update(version=2), "is not an index of version 1"),
    (lambda index: index.pop("classes"), "'classes' is missing"),
    (lambda index: index.update(classes=["ant"]), "two different class names or more, each once"),
    (change("labels", [0, 0, 0, 0, 3]), "a label in train-000000.tar is 3, expected 0 to 2"),
    (change("labels", [0, 0]), "different lengths"),
    (change("offsets", [0, 0, 0, 0, 10**9]), "outside it"),
    (change("file", "../other.tar"), "is called '../other.tar'"),
    (change("sizes", ["much"] * 5), "the sizes of train-000000.tar are not whole numbers"),
    (change("labels", [0.7] * 5), "the labels of train-000000.tar are not whole numbers"),
    (change("file", ".."), "is called '..'"),
    (lambda index: index.update(classes="ab"), "has no class names"),
    (lambda index: index.update(classes=["ant", "ant", "bee"]), "two different class names or more, each once"),
]


@pytest.mark.parametrize(("damage", "expected"), INDICES)
def test_a_damaged_index(load: Make, shards: Path, damage: Any, expected: str) -> None:
    index = json.loads((shards / INDEX).read_text())
    damage(index)
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError) as caught:
        load(shards)
    assert expected in str(caught.value) and str(shards / INDEX) in str(caught.value)
    assert len(caught.value.faults) == 1


def test_nothing_is_left_of_a_failure(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(webdataset.TarWriter, "write", full)
        with pytest.raises(UserError, match="No space left on device.; nothing was kept: free some space"):
            make_shards(image_folder, tmp_path / "out", num_workers=0)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "out").mkdir()
    make_shards(image_folder, tmp_path / "out", num_workers=0)  # an empty folder is replaced
    with pytest.raises(UserError, match="out already exists; give another folder"):
        make_shards(image_folder, tmp_path / "out", num_workers=0)
