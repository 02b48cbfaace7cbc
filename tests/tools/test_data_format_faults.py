"""What is wrong with shards, tables or images without labels: one line, status 2, and nothing is written."""

from __future__ import annotations

import builtins
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import make_image_folder

pytest.importorskip("webdataset")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `images/`, `shards/`, `tables/` and `loose/`."""
    from mdistiller.dataset.shards.write import make_shards

    folder = tmp_path_factory.mktemp("formats")
    make_image_folder(folder / "images", train=4, val=2)
    make_shards(folder / "images", folder / "shards", num_workers=0)
    (folder / "tables").mkdir()
    for part in ("train", "val"):
        files = sorted((folder / "images" / part).glob("*/*"))
        rows = {
            "image": [{"bytes": f.read_bytes(), "path": None} for f in files],
            "label": [f.parent.name for f in files],
        }
        columns = {"image": datasets.Image(), "label": datasets.Value("string")}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
        table.to_parquet(str(folder / "tables" / f"{part}.parquet"))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    for name in ("images", "shards", "tables"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "loose").mkdir()
    return tmp_path


def without(library: str) -> Any:
    def damage(place: Path, patch: pytest.MonkeyPatch) -> None:
        known = builtins.__import__

        def load(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == library:
                raise ImportError(name)
            return known(name, *args, **kwargs)

        patch.setattr(builtins, "__import__", load)

    return damage


def cut(name: str) -> Any:
    def damage(place: Path, patch: pytest.MonkeyPatch) -> None:
        path = place / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def flip(place: Path, patch: pytest.MonkeyPatch) -> None:
    content = bytearray((place / "shards/train-000000.tar").read_bytes())
    content[-1] ^= 1  # in the padding of the tar file, so that every picture is intact
    (place / "shards/train-000000.tar").write_bytes(content)


def relabel(place: Path, patch: pytest.MonkeyPatch) -> None:
    index = json.loads((place / "shards/index.json").read_text())
    index["train"][0]["labels"][0] = 3
    (place / "shards/index.json").write_text(json.dumps(index))


def gone(name: str) -> Any:
    return lambda place, patch: (place / name).unlink()


def spoil(place: Path, patch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        (place / "loose" / f"{number}.png").write_bytes(b"PNG")


def empty_part(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Save the tables anew by the library, with a part without rows."""
    import datasets

    train = datasets.Dataset.from_parquet(str(place / "tables/train.parquet"), cache_dir=str(place / "cache"))
    datasets.DatasetDict({"train": train, "validation": train.select([])}).save_to_disk(str(place / "saved"))


def nothing(place: Path, patch: pytest.MonkeyPatch) -> None:
    pass


SHARDS, TABLES = "DATASET.TYPE webdataset DATASET.ROOT shards", "DATASET.TYPE huggingface DATASET.ROOT tables"
LOOSE = "DATASET.TYPE imagefolder DATASET.ROOT images DATASET.UNLABELED loose"
TRAINING = [
    (SHARDS, gone("shards/index.json"), "index.json is missing; make shards and their index with tools/make_shards.py"),
    (SHARDS, gone("shards/train-000000.tar"), "train-000000.tar cannot be read (No such file or directory); copy it"),
    (SHARDS, cut("shards/train-000000.tar"), "bytes instead of"),
    (SHARDS, cut("shards/index.json"), "index.json cannot be read ("),
    (SHARDS, flip, "train-000000.tar has another checksum: it does not match the index"),
    (SHARDS, relabel, "a label in train-000000.tar is 3, expected 0 to 2"),
    (SHARDS + " DATASET.VAL_FRACTION 0.5", nothing, "has validation images; set DATASET.VAL_FRACTION 0"),
    ("DATASET.TYPE webdataset DATASET.ROOT https://a.b/c.tar", nothing, "https://a.b/c.tar is a URL; copy the data"),
    ("DATASET.TYPE webdataset DATASET.ROOT away", nothing, "away is not a folder; expected a folder of shards"),
    (
        TABLES,
        without("datasets"),
        "DATASET.TYPE huggingface needs datasets; run: pip install datasets",
    ),
    (TABLES, cut("tables/train.parquet"), "tables/train.parquet cannot be read ("),
    ("DATASET.TYPE huggingface DATASET.ROOT saved", empty_part, " has no rows"),
    (TABLES + " DATASET.LABEL_COLUMN class", nothing, "has no column 'class'"),
    (TABLES + " DATASET.IMAGE_COLUMN label", nothing, "tables/train/row 0 (the file tables/class_0 is missing)"),
    (TABLES + " DATASET.VAL_FRACTION 0.5", nothing, "has validation images; set DATASET.VAL_FRACTION 0"),
    ("DATASET.TYPE huggingface DATASET.ROOT me/none", nothing, "me/none is neither on the disk nor in the cache"),
    (LOOSE, nothing, "loose holds 0 images; expected at least 2"),
    (LOOSE, spoil, "cannot read 2 of 2 images: "),
    (LOOSE + "/away", nothing, "loose/away is not a folder"),
    (LOOSE + " DISTILLER.TYPE DKD", nothing, "DISTILLER.TYPE DKD needs a label for each image"),
    (LOOSE + " SOLVER.ACCUMULATE 2", nothing, "SOLVER.ACCUMULATE 2 cannot be combined with DATASET.UNLABELED"),
    (LOOSE + " DATASET.UNLABELED_RATIO 0", nothing, "UNLABELED_RATIO is 0.0; expected a number above 0 and up to 1000"),
]


@pytest.mark.parametrize(("keys", "damage", "expected"), TRAINING)
def test_training(
    command: Any, place: Path, monkeypatch: pytest.MonkeyPatch, keys: str, damage: Any, expected: str
) -> None:
    damage(place, monkeypatch)
    (place / "t.yaml").write_text("{}")
    common = "DISTILLER.TYPE KD DISTILLER.TEACHER resnet8 DISTILLER.STUDENT resnet8 DATASET.INPUT_SIZE 16"
    common += " SOLVER.EPOCHS 1 SOLVER.LR_DECAY_STAGES [] EXPERIMENT.NAME x DATASET.NUM_WORKERS 0 LOG.WANDB False"
    status, _, err = command("train", "--cfg", "t.yaml", *common.split(), *keys.split())
    assert (status, len(err.splitlines())) == (2, 1), err
    assert expected in err
    assert not (place / "output").exists()


def compressed(place: Path, patch: pytest.MonkeyPatch) -> None:
    with tarfile.open(place / "shards/train-000001.tar", "w:gz") as tar:
        tar.add(place / "images", "images")


def unlabeled(place: Path, patch: pytest.MonkeyPatch) -> None:
    with tarfile.open(place / "shards/train-000001.tar", "w") as tar:
        tar.add(place / "images/train/class_0/0.png", "000.png")


def wrong_label(label: str) -> Callable[..., None]:
    def write(place: Path, patch: pytest.MonkeyPatch) -> None:
        (place / "label").write_text(label)
        with tarfile.open(place / "shards/train-000001.tar", "w") as tar:
            tar.add(place / "images/train/class_0/0.png", "000.png")
            tar.add(place / "label", "000.cls")

    return write


def renamed(name: str) -> Callable[..., None]:
    return lambda place, patch: shutil.copy(place / "shards/train-000000.tar", place / "shards" / name)


def spoil_one(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "images/train/class_0/1.png").write_bytes(b"PNG")


def names(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "c.txt").write_text("a\nb\na\n")


INDEX = "--index shards --classes c.txt"
WRITING = [
    ("images out", without("webdataset"), "tools/make_shards.py needs webdataset; run: pip install webdataset"),
    ("images shards", nothing, "shards already exists; give another folder, or remove it first"),
    ("images out", spoil_one, "images/train/class_0/1.png (cannot identify image file"),
    ("images out", spoil_one, "or leave it out with --corrupt skip"),
    ("away out", nothing, "val is missing; expected an image folder with train/<class>/<image>"),
    ("images out -n 0", nothing, "--images-per-shard is 0; expected at least 1"),
    ("images out --val-fraction 0.5", nothing, "images has validation images; set --val-fraction 0"),
    ("images", nothing, "expected FOLDER and OUT, or --index SHARDS --classes FILE"),
    (f"{INDEX} -n 5 --workers 1", nothing, "--index writes an index only, and does not take --images-per-shard, --w"),
    (INDEX, cut("shards/val-000000.tar"), "val-000000.tar cannot be read (unexpected end of data)"),
    (INDEX, compressed, "train-000001.tar cannot be read ("),
    (
        INDEX,
        renamed("train-000001.tar.gz"),
        "train-000001.tar.gz is not a plain .tar file; expected shards",
    ),
    (INDEX, renamed("train-000001.TGZ"), "train-000001.TGZ is not a plain .tar file; expected"),
    (INDEX, renamed("train-000001.TAR"), "train-000001.TAR is not a plain .tar file; expected"),
    (INDEX, unlabeled, "train-000001.tar: 000 has the fields png; expected one picture and cls"),
    (INDEX, wrong_label("7"), "train-000001.tar: 000.cls is '7'; expected a label, 0 to 2"),
    (INDEX, wrong_label("1_0"), "train-000001.tar: 000.cls is '1_0'; expected a label, 0 to 2"),
    (INDEX, wrong_label("000000000000000000012"), "000.cls is '000000000000000000012'; expected a label, 0 to 2"),
    (INDEX, names, "c.txt has 2 different names in 3 lines; expected one class name per line"),
    ("--index away --classes c.txt", nothing, "away is not a folder; expected one with shards"),
]


@pytest.mark.parametrize(("words", "damage", "expected"), WRITING)
def test_writing(
    command: Any, place: Path, monkeypatch: pytest.MonkeyPatch, words: str, damage: Any, expected: str
) -> None:
    (place / "c.txt").write_text("class_0\nclass_1\nclass_2\n")
    damage(place, monkeypatch)
    before = (place / "shards/index.json").read_bytes()
    workers = () if "--index" in words else ("--workers", "0")
    status, _, err = command("make_shards", *workers, *words.split())
    assert (status, len(err.splitlines())) == (2, 1), err
    assert expected in err
    assert not (place / "out").exists() and not list(place.glob(".out*"))
    assert (place / "shards/index.json").read_bytes() == before


def test_shards_by_command_line(command: Any, place: Path) -> None:
    status, out, _ = command("make_shards", "images", "new/shards", "-n", "7", "--workers", "0")
    assert status == 0
    assert "train: 12 images in 2 shards, " in out and "val: 6 images in 1 shards, " in out
    (place / "c.txt").write_text("class_0\nclass_1\nclass_2\n")
    before = (place / "new/shards/index.json").read_bytes()
    index = ("make_shards", "--index", "new/shards", "--classes", "c.txt")
    (place / "new/shards/index.json").unlink()
    status, _, err = command(*index, "-n", "5", "--corrupt", "skip")
    assert (status, err.count("\n")) == (2, 1) and "does not take --images-per-shard, --corrupt" in err
    assert command(*index)[0] == 0
    assert (place / "new/shards/index.json").read_bytes() == before


@pytest.mark.parametrize("keys", [SHARDS, TABLES])
def test_a_saved_student_evaluates_on_its_set(command: Any, place: Path, keys: str) -> None:
    (place / "t.yaml").write_text("{}")
    common = "DISTILLER.STUDENT resnet8 DATASET.INPUT_SIZE 16 SOLVER.EPOCHS 1 SOLVER.LR_DECAY_STAGES [] LOG.WANDB False"
    status, out, err = command("train", "--cfg", "t.yaml", "EXPERIMENT.NAME", "x", *common.split(), *keys.split())
    assert status == 0, err
    status, out, err = command("eval", "-m", "resnet8", "-c", "output/x/student_latest.pth")
    assert status == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["data"] == f"{keys.split()[1]}, 6 validation images, 3 classes"
    assert lines["recorded"].startswith(lines["deployed"])
