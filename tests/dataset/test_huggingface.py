"""Tables of the `datasets` library: read like image folders, from Parquet files, saved folders and the cache."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import torch

from mdistiller.dataset import get_dataset, get_val_loader
from mdistiller.errors import UserError

datasets = pytest.importorskip("datasets")
Make = Callable[..., Any]
GIVEN = {"MEAN": [0.5, 0.5, 0.5], "STD": [0.25, 0.25, 0.25], "INPUT_SIZE": 16}
CLASSES = ["ant", "bee", "cat"]
NUMBERS = datasets.Value("int64")


@pytest.fixture(autouse=True)
def library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep the library's cache out of the user's home."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    yield tmp_path / "library"


def table(folder: Path, label: Any = None, named: bool = True, image: Any = None) -> Any:
    """Return the images of a class folder as a table, in the order in which `imagefolder` numbers them."""
    files = sorted(folder.glob("*/*"))
    labels: List[Any] = [CLASSES.index(file.parent.name) if named else file.parent.name for file in files]
    content = [{"bytes": file.read_bytes(), "path": None} for file in files]
    features = {"image": image or datasets.Image(), "label": label or datasets.ClassLabel(names=CLASSES)}
    rows = content if not isinstance(image, datasets.Value) else [cell["bytes"] for cell in content]
    return datasets.Dataset.from_dict({"image": rows, "label": labels}, features=datasets.Features(features))


def write(root: Path, image_folder: Path, parts: Tuple[str, ...] = ("train", "val"), **kind: Any) -> Path:
    for part in parts:
        (root / "data").mkdir(parents=True, exist_ok=True)
        name = {"val": "validation"}.get(part, part)
        table(image_folder / part, **kind).to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
    return root


@pytest.fixture
def parquet(image_folder: Path) -> Path:
    return write(image_folder.with_name("parquet"), image_folder)


@pytest.fixture
def load(make_cfg: Make) -> Make:
    """Return a function(root, **DATASET keys) -> loaders."""

    def run(root: object, **keys: Any) -> Any:
        cfg = make_cfg(**{"TYPE": "huggingface", "ROOT": str(root), **GIVEN, **keys})
        cfg.SOLVER.BATCH_SIZE = 5
        return get_dataset(cfg, "cpu")[:2]

    return run


def check_equal(load: Make, collect: Make, root: object, image_folder: Path, **keys: Any) -> None:
    for ours, theirs in zip(load(root, **keys), load(image_folder, TYPE="imagefolder", **keys)):
        assert ours.info.classes == theirs.info.classes == tuple(CLASSES)
        for epoch in (1, 2):
            for loader in (ours, theirs):
                loader.set_epoch(epoch)
            one, other = collect(ours), collect(theirs)
            assert all(torch.equal(one[key], other[key]) for key in other)
            rest = collect(ours, len(ours) - 1)
            assert all(torch.equal(rest[key], one[key][-len(rest[key]) :]) for key in rest)


@pytest.mark.parametrize("keys", [{"IN_MEMORY": "yes"}, {"IN_MEMORY": "no", "NUM_WORKERS": 2}])
def test_the_batches_are_those_of_the_folder(
    load: Make, parquet: Path, image_folder: Path, collect: Make, keys: Dict[str, Any]
) -> None:
    check_equal(load, collect, parquet, image_folder, **keys)


@pytest.mark.parametrize("kind", ["saved", "cache", "name", "texts", "bytes", "numbers"])
def test_other_places_and_kinds(
    load: Make, image_folder: Path, collect: Make, tmp_path: Path, library_cache: Path, kind: str
) -> None:
    root: Any = tmp_path / "tables"
    parts = {"train": table(image_folder / "train"), "validation": table(image_folder / "val")}
    if kind == "saved":
        datasets.DatasetDict(parts).save_to_disk(str(root))
    elif kind in ("cache", "name"):  # as the library lays them out
        place = library_cache / "owner___pictures/default/0.0.0/1234"
        place.mkdir(parents=True)
        for name, part in parts.items():
            part.save_to_disk(str(tmp_path / name))
            shutil.move(str(next((tmp_path / name).glob("*.arrow"))), str(place / f"pictures-{name}.arrow"))
            shutil.move(str(tmp_path / name / "dataset_info.json"), str(place / "dataset_info.json"))
        root = place if kind == "cache" else "owner/pictures"
    elif kind == "texts":
        write(root, image_folder, label=datasets.Value("string"), named=False)
    elif kind == "bytes":
        write(root, image_folder, image=datasets.Value("binary"))
    else:
        write(root, image_folder, label=NUMBERS)
        train, _ = load(root)
        assert train.info.classes == ("0", "1", "2") and train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        return
    check_equal(load, collect, root, image_folder)


def test_statistics_and_a_part_are_those_of_the_folder(load: Make, parquet: Path, image_folder: Path) -> None:
    keys = {"MEAN": None, "STD": None, "TRAIN_FRACTION": 0.5, "IN_MEMORY": "no"}
    ours, theirs = load(parquet, **keys)[0], load(image_folder, TYPE="imagefolder", **keys)[0]
    assert (ours.info.mean, ours.info.std) == (theirs.info.mean, theirs.info.std)
    assert torch.equal(ours.targets, theirs.targets) and ours.num_images == 6
    assert ours.fingerprint() == load(parquet, **keys)[0].fingerprint() != load(parquet)[0].fingerprint()
    assert ours.digest() == load(parquet, **keys)[0].digest()


def test_a_single_file_and_a_held_out_part(load: Make, image_folder: Path, tmp_path: Path, make_cfg: Make) -> None:
    table(image_folder / "train").to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(UserError, match="all.parquet has no validation images; set DATASET.VAL_FRACTION 0.1"):
        load(tmp_path / "all.parquet")
    train, val = load(tmp_path / "all.parquet", VAL_FRACTION=0.25)
    assert (train.num_images, val.num_images) == (9, 3)
    cfg = make_cfg(TYPE="huggingface", ROOT=str(tmp_path / "all.parquet"), VAL_FRACTION=0.25, **GIVEN)
    assert torch.equal(get_val_loader(cfg, "cpu").targets, val.targets)
    streamed, _ = load(tmp_path / "all.parquet", VAL_FRACTION=0.25, IN_MEMORY="no", MEAN=None, STD=None)
    assert torch.equal(streamed.targets, train.targets)


def test_other_columns(load: Make, image_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        renamed = table(image_folder / part).rename_columns({"image": "img", "label": "fine_label"})
        renamed.add_column("text", ["x"] * len(renamed)).to_parquet(str(tmp_path / f"{part}.parquet"))
    (tmp_path / "tables").mkdir()
    for file in tmp_path.glob("*.parquet"):
        file.rename(tmp_path / "tables" / file.name)
    with pytest.raises(UserError, match="no column 'label': set DATASET.LABEL_COLUMN; did you mean fine_label"):
        load(tmp_path / "tables")
    with pytest.raises(UserError, match="no column 'image'.*set DATASET.IMAGE_COLUMN"):
        load(tmp_path / "tables", LABEL_COLUMN="fine_label")
    with pytest.raises(UserError, match="'fine_label' of .* holds ClassLabel.*; expected encoded images"):
        load(tmp_path / "tables", LABEL_COLUMN="fine_label", IMAGE_COLUMN="fine_label")
    with pytest.raises(UserError, match="'img' of .* expected a label in each row"):
        load(tmp_path / "tables", LABEL_COLUMN="img", IMAGE_COLUMN="img")
    train, _ = load(tmp_path / "tables", LABEL_COLUMN="fine_label", IMAGE_COLUMN="img")
    assert train.num_images == 12


def test_a_damaged_picture_is_named(
    load: Make, image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (image_folder / "train/bee/0.png").write_bytes(b"PNG")
    root = write(tmp_path / "tables", image_folder)
    for in_memory in ("yes", "no"):
        with pytest.raises(UserError, match="tables/train/row 4 .cannot identify image file"):
            load(root, IN_MEMORY=in_memory)
        with caplog.at_level(logging.WARNING, logger="mdistiller"):
            assert load(root, IN_MEMORY=in_memory, CORRUPT="skip")[0].num_images == 11
        assert "left out 1 of 12 training images" in caplog.text


def test_a_row_without_an_image(load: Make, image_folder: Path, tmp_path: Path) -> None:
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # the library would embed the file
    features = datasets.Features({"image": cell, "label": datasets.ClassLabel(names=CLASSES)})
    rows = table(image_folder / "train").cast_column("image", datasets.Image(decode=False))[:]
    rows["image"][2], rows["image"][3] = None, {"bytes": None, "path": "gone.png"}
    (tmp_path / "tables").mkdir()
    table(image_folder / "val").to_parquet(str(tmp_path / "tables/val.parquet"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "tables/train.parquet"))
    with pytest.raises(UserError, match=r"row 2 \(the row has no image\); .*row 3 \(the file .*gone.png is missing\)"):
        load(tmp_path / "tables")


def test_other_images_in_files_of_their_own_are_seen(load: Make, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for part in ("train", "val"):
        files = sorted((image_folder / part).glob("*/*"))
        names = [f"{part}-{number}.png" for number in range(len(files))]
        for file, name in zip(files, names):
            shutil.copy(file, tmp_path / "tables" / name)
        labels = [file.parent.name for file in files]
        rows = datasets.Dataset.from_dict({"image": names, "label": labels})
        rows.to_parquet(str(tmp_path / f"tables/{part}.parquet"))
    before, _ = load(tmp_path / "tables", IN_MEMORY="no")
    assert before.digest() == load(tmp_path / "tables", IN_MEMORY="no")[0].digest()
    shutil.copy(tmp_path / "tables/train-5.png", tmp_path / "tables/train-1.png")
    after, _ = load(tmp_path / "tables", IN_MEMORY="no")
    assert before.digest() != after.digest() and before.fingerprint() != after.fingerprint()


WRONG_LABELS = [
    (["a", "b"], ["a", "c"], "val images have the class 'c', and no training image has it"),
    (["a", "b"], ["a", "B"], "val images have the class 'B', and no training image has it"),
    (["a", "b", ""], ["a"], "has empty strings; give each image its class"),
    ([0, 1], [5], "val images have the class 5, and no training image has it"),
    ([1, 2, 3], [1], "has 3 different numbers from 1 to 3; expected classes from 0 to 2, each with a training image"),
    ([-1, 0, 1], [0], "has 3 different numbers from -1 to 1; expected"),
    ([0, 0, 7], [0], "has 2 different numbers from 0 to 7; expected"),
]


@pytest.mark.parametrize(("train", "val", "reason"), WRONG_LABELS)
def test_labels_without_training_images(
    load: Make, image_folder: Path, tmp_path: Path, train: Any, val: Any, reason: str
) -> None:
    content = {"bytes": next(image_folder.glob("train/*/*")).read_bytes(), "path": None}
    (tmp_path / "tables").mkdir()
    for part, labels in (("train", train), ("val", val)):
        rows = datasets.Dataset.from_dict({"image": [content] * len(labels), "label": labels})
        rows.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / f"tables/{part}.parquet"))
    with pytest.raises(UserError, match=reason):
        load(tmp_path / "tables")


def test_names_in_one_part_only(load: Make, image_folder: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "tables", image_folder, parts=("train",), label=datasets.Value("int64"))
    write(root, image_folder, parts=("val",))
    with pytest.raises(UserError, match="the val and training images have different classes"):
        load(root)


@pytest.mark.parametrize(
    ("label", "reason"),
    [(-1, "has 4 different numbers from -1 to 2; expected classes from 0 to 3"), (None, "train row 3 has no label")],
)
def test_a_label_out_of_range(load: Make, image_folder: Path, tmp_path: Path, label: Any, reason: str) -> None:
    rows = table(image_folder / "train", label=NUMBERS).cast_column("image", datasets.Image(decode=False))[:]
    rows["label"][3] = label
    (tmp_path / "tables").mkdir()
    table(image_folder / "val", label=NUMBERS).to_parquet(str(tmp_path / "tables/val.parquet"))
    features = datasets.Features({"image": datasets.Image(), "label": NUMBERS})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "tables/train.parquet"))
    with pytest.raises(UserError, match=reason):
        load(tmp_path / "tables")


def test_files_of_the_librarys_own_cache_are_no_images(load: Make, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tables"
    root.mkdir()
    for part in ("train", "val"):
        rows = table(image_folder / part)
        rows.save_to_disk(str(tmp_path / part))
        shutil.copy(next((tmp_path / part).glob("*.arrow")), root / f"set-{part}.arrow")
    shutil.copy(root / "set-val.arrow", root / "cache-0123456789abcdef.arrow")  # as `map` leaves it
    assert load(root)[0].num_images == 12


def test_two_training_parts_are_refused(load: Make, image_folder: Path, tmp_path: Path) -> None:
    rows = table(image_folder / "train")
    datasets.DatasetDict({"train": rows, "extra": rows, "val": rows}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"several train parts, among train, extra, val; save only the one to use"):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([[0, 1]] * 12, "expected a label in each row, of the same type in all parts"),
        (
            [10**8 + number for number in range(12)],
            "has 12 different numbers from 100000000 to 100000011; expected classes from 0 to 11",
        ),
    ],
)
def test_columns_that_are_no_labels(
    load: Make, image_folder: Path, tmp_path: Path, labels: List[Any], reason: str
) -> None:
    rows = table(image_folder / "train").remove_columns("label").add_column("label", labels)
    (tmp_path / "tables").mkdir()
    for part in ("train", "val"):
        rows.to_parquet(str(tmp_path / f"tables/{part}.parquet"))
    with pytest.raises(UserError, match=reason):
        load(tmp_path / "tables")


def test_a_damaged_file_is_named(load: Make, parquet: Path, image_folder: Path, tmp_path: Path) -> None:
    second = parquet / "data/train-00001-of-00002.parquet"
    content = (parquet / "data/train-00000-of-00001.parquet").read_bytes()
    second.write_bytes(content[:-30])
    with pytest.raises(UserError) as caught:
        load(parquet)
    assert str(second) in str(caught.value) and len(caught.value.faults) == 1
    second.unlink()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(UserError, match="saved cannot be read"):
        load(tmp_path / "saved")


PLACES: List[Tuple[str, str]] = [
    ("", "DATASET.ROOT is not set"),
    ("owner/unknown", "owner/unknown is neither on the disk nor in the cache"),
    ("hf://datasets/owner/name", "is a URL; copy the data to a local disk"),
    ("empty", "holds no Parquet or Arrow file"),
]


@pytest.mark.parametrize(("root", "expected"), PLACES)
def test_places_without_tables(load: Make, tmp_path: Path, root: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        load(root)
    assert expected in str(caught.value)


def test_a_test_part_does_not_choose_the_best_epoch(load: Make, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "val", image_folder / "test")
    root = write(tmp_path / "tables", image_folder, ("train", "test"))
    with pytest.raises(UserError, match="its test images are not used instead"):
        load(root)
    with pytest.raises(UserError, match="has no training images, only test"):
        load(root / "data/test-00000-of-00001.parquet")


def test_several_data_sets_in_one_folder(load: Make, image_folder: Path, tmp_path: Path) -> None:
    for name in ("large", "small"):
        write(tmp_path / "both" / name, image_folder)
    with pytest.raises(
        UserError, match="both has train images in several folders, .*large.data, .*small.data; if these"
    ):
        load(tmp_path / "both")
    (file,) = (tmp_path / "both" / "large").rglob("train*")
    file.rename(tmp_path / "both" / "large" / "train.parquet")  # parts at different depths are one data set
    assert load(tmp_path / "both" / "large")[0].num_images == 12
    assert load(tmp_path / "both" / "small")[0].num_images == load(image_folder, TYPE="imagefolder")[0].num_images


def test_a_part_without_rows(load: Make, parquet: Path, image_folder: Path) -> None:
    (file,) = (parquet / "data").glob("validation*")
    table(image_folder / "val").select([]).to_parquet(str(file))
    with pytest.raises(UserError, match="the val part, .*validation-00000-of-00001.parquet, has no rows; remove it"):
        load(parquet)
