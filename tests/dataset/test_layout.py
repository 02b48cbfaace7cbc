"""The layout of an image folder: names of `val/`, hints at the right folder, `DATASET.VAL_FRACTION`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Callable, Set

import pytest
import torch

from mdistiller.dataset import dataset_dict, get_dataset, get_val_loader
from mdistiller.dataset.folders.class_folders import class_folders, find_images
from mdistiller.dataset.folders.layout import hold_out
from mdistiller.dataset.loading import image_check
from mdistiller.dataset.loading.image_check import check_images
from mdistiller.errors import UserError
from tests.conftest import make_image_folder

Make = Callable[..., Any]
GIVEN = {"INPUT_SIZE": 16, "MEAN": [0.5] * 3, "STD": [0.25] * 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "set", train=8, val=2)


@pytest.fixture
def make(make_cfg: Make, root: Path) -> Make:
    """Return a function(**DATASET keys) -> config for the folder."""
    return lambda **keys: make_cfg(**{"TYPE": "imagefolder", "ROOT": str(root), **GIVEN, **keys})


def refused(cfg: Any, load: Make = get_dataset) -> str:
    with pytest.raises(UserError) as caught:
        load(cfg, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names and places


@pytest.mark.parametrize("name", ["valid", "validation"])
@pytest.mark.parametrize("dataset", ["imagefolder", "imagenet", "tiny_imagenet"])
def test_other_names_of_the_validation_folder(make: Make, root: Path, dataset: str, name: str) -> None:
    (root / "val").rename(root / name)
    cfg = make(TYPE=dataset)
    assert get_dataset(cfg, "cpu")[1].num_images == get_val_loader(cfg, "cpu").num_images == 6


def test_two_names_of_it(make: Make, root: Path) -> None:
    (root / "valid").symlink_to(root / "val")
    assert get_val_loader(make(), "cpu").num_images == 6, "they are the same folder"
    (root / "valid").unlink()
    shutil.copytree(str(root / "val"), str(root / "valid"))
    for dataset in ("imagefolder", "imagenet", "tiny_imagenet"):
        assert f"{root} holds val and valid, and each is a name of the validation folder; keep" in refused(
            make(TYPE=dataset)
        )


def test_no_validation_folder(make: Make, root: Path) -> None:
    shutil.rmtree(root / "val")
    assert f"{root}/val is missing; expected <DATASET.ROOT>/train/<class>" in refused(make())
    for dataset in ("imagefolder", "imagenet"):
        assert refused(make(TYPE=dataset)).endswith("or set DATASET.VAL_FRACTION 0.1 to validate on a tenth of train/")
    (root / "test").mkdir()
    assert f"val is missing ({root}/test is not used instead: a test set must not choose the best epoch)" in refused(
        make()
    )


@pytest.mark.parametrize(
    ("dataset", "missing"), [("imagefolder", "val"), ("imagenet", "val"), ("tiny_imagenet", "train")]
)
def test_a_root_that_is_one_level_off(make: Make, root: Path, dataset: str, missing: str) -> None:
    too_high = refused(make(TYPE=dataset, ROOT=str(root.parent)))
    assert f"{root.parent}/{missing} is missing, but {root}/train is there: set DATASET.ROOT to {root};" in too_high
    for part in ("train", "val"):
        too_low = refused(make(TYPE=dataset, ROOT=str(root / part)))
        assert f"{root / part} seems to be a part of a data set, set DATASET.ROOT to {root};" in too_low
    (root / "val").rename(root.parent / "flat")
    flat = refused(make(TYPE=dataset, ROOT=str(root.parent / "flat")))
    assert "flat holds 3 folders (class_0, class_1, class_2): if these are the classes, move them to" in flat


# --- DATASET.VAL_FRACTION


@pytest.fixture
def without_val(root: Path) -> Path:
    shutil.rmtree(root / "val")
    return root


def names_of(split: Any) -> Set[str]:
    return {f"{path.parent.name}/{path.name}" for path in split.paths()}


@pytest.mark.parametrize("dataset", ["imagefolder", "imagenet"])
def test_validation_images_are_held_out_of_each_class(
    make: Make, without_val: Path, dataset: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mdistiller"):
        splits = dataset_dict[dataset](make(TYPE=dataset, VAL_FRACTION=0.25))
    assert splits.val.targets.bincount().tolist() == [2, 2, 2] and splits.train.targets.bincount().tolist() == [6] * 3
    train, val = names_of(splits.train), names_of(splits.val)
    assert not train & val and len(train | val) == 24
    for split in (splits.train, splits.val):
        assert [f"class_{label}" for label in split.targets.tolist()] == [path.parent.name for path in split.paths()]
    assert [record.getMessage() for record in caplog.records] == [
        f"DATASET.VAL_FRACTION 0.25: 6 of the 24 images in {without_val}/train are for validation, the others for"
        " training"
    ]


def test_the_part_is_the_same_for_every_seed_place_and_process(make: Make, without_val: Path, collect: Make) -> None:
    cfg = make(VAL_FRACTION=0.25)
    first = dataset_dict["imagefolder"](cfg)
    assert sorted(names_of(first.val)) == [  # literal: a later version must not choose others
        *("class_0/3.png", "class_0/5.png", "class_1/4.png", "class_1/6.png", "class_2/0.png", "class_2/7.png"),
    ]
    seen = collect(get_dataset(cfg, "cpu")[1])
    cfg.EXPERIMENT.SEED = 7
    cfg.DATASET.TRAIN_FRACTION = 0.5
    train, val, num_data, _ = get_dataset(cfg, "cpu")
    assert num_data == 9 and train.targets.bincount().tolist() == [3, 3, 3], "a half of what is left"
    without_val.rename(without_val.with_name("elsewhere"))
    cfg.DATASET.ROOT = str(without_val.with_name("elsewhere"))
    for loader in (val, get_val_loader(cfg, "cpu")):
        assert torch.equal(collect(loader)["image"], seen["image"])
    cfg.DATASET.IN_MEMORY = "no"
    assert torch.equal(collect(get_val_loader(cfg, "cpu"))["image"], seen["image"])


def test_a_file_more_or_less_moves_at_most_one_other(make: Make, without_val: Path) -> None:
    before = names_of(dataset_dict["imagefolder"](make(VAL_FRACTION=0.25)).val)
    for number in range(8, 16):
        shutil.copy(str(without_val / "train/class_0/0.png"), str(without_val / f"train/class_0/{number}.png"))
        after = names_of(dataset_dict["imagefolder"](make(VAL_FRACTION=0.25)).val)
        assert len(before - after) <= 1 and len(after - before) <= 1
        before = after
    smaller = names_of(dataset_dict["imagefolder"](make(VAL_FRACTION=0.1)).val)
    assert smaller < before


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 4), (0.99, 7)])
def test_each_class_keeps_an_image_on_each_side(make: Make, without_val: Path, fraction: float, count: int) -> None:
    train, val, _, _ = get_dataset(make(VAL_FRACTION=fraction), "cpu")
    assert val.targets.bincount().tolist() == [count] * 3 and train.targets.bincount().tolist() == [8 - count] * 3


def test_statistics_are_those_of_the_training_part(make_cfg: Make, without_val: Path) -> None:
    keys = {"TYPE": "imagefolder", "INPUT_SIZE": 16}
    held_out = get_dataset(make_cfg(ROOT=str(without_val), VAL_FRACTION=0.25, **keys), "cpu")
    splits = dataset_dict["imagefolder"](make_cfg(ROOT=str(without_val), VAL_FRACTION=0.25, **keys))
    moved = without_val.with_name("by_hand")
    for part, split in (("train", splits.train), ("val", splits.val)):
        for path in split.paths():
            target = moved / part / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(path), str(target))
    by_hand = get_dataset(make_cfg(ROOT=str(moved), **keys), "cpu")
    assert held_out[0].info == by_hand[0].info
    assert held_out[0].digest() == by_hand[0].digest() and held_out[1].digest() == by_hand[1].digest()


def test_held_out_images_are_checked(make: Make, without_val: Path) -> None:
    cfg = make(VAL_FRACTION=0.25, IN_MEMORY="no")
    val = dataset_dict["imagefolder"](cfg).val
    val.path(0).write_bytes(b"")
    with pytest.raises(UserError, match="cannot read the image"):
        check_images(val, "refuse", 0, "validation")
    assert refused(cfg).startswith("cannot read the image")
    cfg.DATASET.CORRUPT = "skip"
    assert get_dataset(cfg, "cpu")[1].num_images == 5


def test_both_parts_are_remembered_as_checked(make: Make, without_val: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = image_check._read
    monkeypatch.setattr(
        image_check, "_read", lambda split, indices, n: read.append(len(indices)) or real(split, indices, n)
    )
    for _ in range(2):
        get_dataset(make(VAL_FRACTION=0.25, IN_MEMORY="no"), "cpu")
    assert read == [18, 6, 0, 0]


def test_a_contradiction(make: Make, root: Path) -> None:
    (root / "val").rename(root / "valid")
    for dataset in ("imagefolder", "imagenet"):
        message = refused(make(TYPE=dataset, VAL_FRACTION=0.1))
        assert (
            f"DATASET.VAL_FRACTION is 0.1, which takes validation images out of the training images, but {root} has"
            in (message)
        )
    for dataset in ("fashion_demo", "tiny_imagenet"):
        expected = f"DATASET.VAL_FRACTION is 0.1, but {dataset} has its own validation images; set"
        keys = {"ROOT": str(root) if dataset == "tiny_imagenet" else ""}
        for load in (get_dataset, get_val_loader):
            assert expected in refused(make(TYPE=dataset, VAL_FRACTION=0.1, **keys), load)


def test_a_class_of_one_image_cannot_be_divided(make: Make, without_val: Path) -> None:
    for number in range(1, 8):
        (without_val / "train" / "class_1" / f"{number}.png").unlink()
    message = refused(make(VAL_FRACTION=0.1))
    assert f"{without_val}/train/class_1 holds a single image; DATASET.VAL_FRACTION needs two of each class" in message


@pytest.mark.parametrize("value", [-0.1, 1.0, "0.1", True])
def test_fractions_out_of_range(make: Make, value: Any) -> None:
    assert f"VAL_FRACTION is {value!r}; expected a number from 0" in refused(make(VAL_FRACTION=value))


@pytest.mark.parametrize("name", ["Val", "VAL", "Validation"])
def test_the_case_of_a_validation_folder_does_not_matter(make, root, name):
    (root / "val").rename(root / name)
    assert get_dataset(make(), "cpu")[1].num_images == 6
    assert "VAL_FRACTION" in refused(make(VAL_FRACTION=0.25))


def test_the_part_is_the_same_in_the_working_directory(without_val: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(without_val)
    parts = []
    for place in (Path("."), Path("train"), without_val, without_val / "train"):
        folder = place if place.name == "train" else place / "train"
        classes = class_folders(folder, "")
        _, val = hold_out(find_images(folder, classes), place, classes, 0.5)
        parts.append((place.name == "train", {file.name for file in val.paths()}))
    names = [[found for below_train, found in parts if below_train is kind] for kind in (False, True)]
    assert all(first == second for first, second in names)
