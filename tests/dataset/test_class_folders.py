"""Class folders: which files are images, which are ignored, broken links, classes in another folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.dataset import get_dataset, get_val_loader
from mdistiller.dataset.images.file_names import picture_suffixes
from mdistiller.errors import UserError
from tests.conftest import make_image_folder

Make = Callable[..., Any]
GIVEN = {"INPUT_SIZE": 16, "MEAN": [0.5] * 3, "STD": [0.25] * 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "set", train=3, val=2)


@pytest.fixture
def load(make_cfg: Make, root: Path) -> Make:
    return lambda **keys: get_dataset(make_cfg(**{"TYPE": "imagefolder", "ROOT": str(root), **GIVEN, **keys}), "cpu")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], List[str]]:
    """Return a function() -> the lines that were told to the user."""
    caplog.set_level(logging.INFO, logger="mdistiller")
    return lambda: [record.getMessage() for record in caplog.records]


def refused(load: Make, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- pictures by their suffix


@pytest.mark.parametrize("keys", [{}, {"IN_MEMORY": "no", "NUM_WORKERS": 1}])
def test_every_format_that_pillow_reads_is_taken(load: Make, root: Path, lines: Make, collect: Make, keys: Any) -> None:
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    for suffix in (".jfif", ".jpe", ".JPG", ".gif", ".webp", ".tif", ".tga", ".jp2", ".pcx", ".dib"):
        picture.save(root / "train" / "class_1" / f"x{suffix}")
    train = load(**keys)[0]
    assert train.targets.bincount().tolist() == [3, 13, 3] and train.num_images == 19
    assert collect(train)["image"].shape == (19, 3, 16, 16)
    assert lines() == ["1 of 19 training images are converted to RGB (1 P)"]


def test_suffixes() -> None:
    suffixes = picture_suffixes()
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".webp", ".tiff"} <= suffixes
    assert {".ppm", ".pgm", ".tif", ".tga", ".jp2"} <= suffixes
    assert not suffixes & {".eps", ".ps", ".pdf", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf", ""}


def test_of_an_animation_the_first_frame_is_taken(load: Make, root: Path, collect: Make) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    frames[0].save(root / "val" / "class_0" / "0.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    (root / "val" / "class_0" / "0.png").unlink()
    shown = collect(load()[1])["image"][0]
    torch.testing.assert_close(shown, torch.tensor([2.0, -2.0, -2.0]).view(3, 1, 1).expand(3, 16, 16))


def test_postscript_under_another_suffix_is_not_run(load: Make, root: Path) -> None:
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    (root / "train" / "class_0" / "x.png").write_text(text)
    assert "class_0/x.png (cannot identify image file" in refused(load)


def test_what_is_passed_over_is_counted_by_suffix(load: Make, root: Path, lines: Make) -> None:
    for name in ("a.txt", "b.TXT", "labels.json", "README", "more/c.heic", "more/d.txt"):
        path = root / "train" / "class_1" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (root / "val" / "class_0" / "a.csv").write_bytes(b"")
    assert load()[2] == 9
    unread = "that Pillow does not read as images"
    assert sorted(lines()) == [
        f"ignored 1 file in {root}/val {unread}: 1 .csv",
        f"ignored 6 files in {root}/train {unread}: 3 .txt, 1 .heic, 1 .json, 1 without a suffix",
    ]


def test_evaluation_counts_them_too(make_cfg: Make, root: Path, lines: Make) -> None:
    (root / "val" / "class_0" / "a.csv").write_bytes(b"")
    (root / "train" / "class_0" / "a.csv").write_bytes(b"")
    get_val_loader(make_cfg(TYPE="imagefolder", ROOT=str(root), **GIVEN), "cpu")
    assert [line.partition(" that")[0] for line in lines()] == [f"ignored 1 file in {root}/val"]


def test_a_class_of_other_files_alone_says_which(load: Make, root: Path) -> None:
    for path in (root / "train" / "class_1").iterdir():
        path.rename(path.with_suffix(".heic"))
    message = refused(load)
    assert f"class folder {root}/train/class_1 holds no image (files ignored in {root}/train: 3 .heic); add" in (
        message
    )


def test_pictures_beside_the_class_folders_are_counted(load: Make, root: Path, lines: Make) -> None:
    for name in ("a.jpg", "b.png", "readme.txt"):
        (root / "train" / name).write_bytes(b"")
    assert load()[2] == 9
    assert lines() == [f"ignored 2 images in {root}/train itself, outside the class folders"]


# --- what systems leave


def test_leftovers_are_neither_pictures_nor_classes(load: Make, root: Path, lines: Make) -> None:
    folders = ["@eaDir", "__MACOSX", ".thumbnails", "#recycle", "@Recycle", "lost+found", "$RECYCLE.BIN"]
    folders += ["System Volume Information", ".ipynb_checkpoints", "@Recently-Snapshot"]
    for name in folders:
        for place in (root, root / "train", root / "val", root / "train" / "class_1"):
            (place / name).mkdir()
            shutil.copy(str(root / "train" / "class_0" / "0.png"), str(place / name / "thumbnail.png"))
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png", "Icon\r"):
        for place in (root / "train", root / "train" / "class_1"):
            (place / name).write_bytes(b"no picture")
    train, val, _, num_classes = load()
    assert num_classes == 3 and train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and val.num_images == 6
    assert lines() == []


# --- links to nowhere


@pytest.mark.parametrize("place", ["train/class_1", "val/class_1", "train", "val", ""])
def test_a_folder_on_a_disk_that_is_not_mounted(load: Make, root: Path, tmp_path: Path, place: str) -> None:
    shutil.rmtree(root / place)
    path = root / place
    path.symlink_to(tmp_path / "disk" / "b", target_is_directory=True)
    expected = f"{path} is a link to {tmp_path}/disk/b, which cannot be reached (No such file or directory); mount the"
    assert expected in refused(load)


@pytest.mark.parametrize(("dataset", "part"), [("imagenet", "val"), ("tiny_imagenet", "train")])
def test_such_a_link_in_the_named_sets(load: Make, root: Path, tmp_path: Path, dataset: str, part: str) -> None:
    (root / part / "class_9").symlink_to(tmp_path / "disk")
    assert f"{part}/class_9 is a link to {tmp_path}/disk, which cannot be reached" in refused(load, TYPE=dataset)


def test_links_to_nowhere_within_a_class(load: Make, root: Path, tmp_path: Path) -> None:
    link = root / "train" / "class_0" / "more"
    link.symlink_to(tmp_path / "disk")
    assert f"{link} is a link to {tmp_path}/disk, which cannot be reached" in refused(load)
    assert f"{link} is a link" in refused(load, CORRUPT="skip"), "it may be a thousand pictures"
    link.unlink()
    link.with_suffix(".png").symlink_to(tmp_path / "disk")  # by its name one picture, which is not usable
    assert "cannot read the image" in refused(load)
    assert load(CORRUPT="skip")[2] == load(CORRUPT="skip", IN_MEMORY="no")[2] == 9


def test_a_link_to_itself(load: Make, root: Path) -> None:
    (root / "train" / "class_9").symlink_to(root / "train" / "class_9")
    assert "class_9, which cannot be reached (Too many levels of symbolic links)" in refused(load)


# --- fewer than two classes


@pytest.mark.parametrize("wrapper", ["images", "train", "a/b"])
@pytest.mark.parametrize("dataset", ["imagefolder", "imagenet", "tiny_imagenet"])
def test_classes_one_folder_too_deep(load: Make, root: Path, wrapper: str, dataset: str) -> None:
    for part in ("train", "val"):
        (root / part).rename(root / "away")
        (root / part / wrapper).parent.mkdir(parents=True)
        (root / "away").rename(root / part / wrapper)
    message = refused(load, TYPE=dataset)
    assert (
        f" holds only one folder, {wrapper}, with 3 folders in it (class_0, class_1, class_2): the classes seem"
        in message
    )


def test_a_whole_data_set_within_a_part(load: Make, root: Path) -> None:
    shutil.copytree(str(root), str(root.parent / "copy"))
    shutil.rmtree(root / "val")
    (root.parent / "copy").rename(root / "val")
    (root / "val").rename(root / "inner")
    (root / "val").mkdir()
    (root / "inner").rename(root / "val" / "inner")
    assert (
        f"val holds a whole data set, {root}/val/inner, instead of classes: set DATASET.ROOT to that folder"
        in refused(load)
    )


def test_one_class(load: Make, root: Path) -> None:
    for part in ("train", "val"):
        for label in (0, 2):
            shutil.rmtree(root / part / f"class_{label}")
    assert "val holds only one class, class_1, but at least two are needed; expected <DATASET.ROOT>" in refused(load)
    (root / "val" / "class_1" / "loop").symlink_to(root / "val" / "class_1")
    assert "val holds only one class, class_1, but at least two are needed" in refused(load)
