"""The `imagenet` set: folders, the recipe of 224 px, evaluation without training images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from mdistiller.dataset import StreamLoader, get_dataset, get_val_loader
from mdistiller.dataset.images import decode
from mdistiller.dataset.images.decode import View, decode_region
from mdistiller.dataset.loading import splits
from mdistiller.dataset.loading.splits import FileSplit
from mdistiller.dataset.loading.stream_loader import resized_crop
from mdistiller.errors import UserError

Make = Callable[..., Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WNIDS = ("n01440764", "n01443537", "n02084071")


def smooth_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture without fine detail, like a photograph and unlike noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder of 3 classes with 3 training and 2 validation JPEGs each."""
    for split, count in (("train", 3), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                picture = smooth_picture(320 - 40 * number, 260, seed=10 * label + number)
                picture.save(folder / f"{wnid}_{number}.JPEG", quality=92)
    return tmp_path / "imagenet"


def test_the_recipe_of_the_tables(make_cfg: Make, tree: Path, monkeypatch: pytest.MonkeyPatch, collect: Make) -> None:
    monkeypatch.setenv("MDISTILLER_DATA", str(tree.parent))
    train, val, num_data, num_classes = get_dataset(make_cfg(TYPE="imagenet"), "cpu")
    assert (num_data, num_classes, val.num_images) == (9, 3, 6)
    assert isinstance(train, StreamLoader) and isinstance(val, StreamLoader)
    assert train.info.name == "imagenet" and train.info.classes == WNIDS and train.info.input_size == 224
    assert (train.info.mean, train.info.std) == (MEAN, STD)
    assert (train.augment, train.num_variants, val.augment) == ("resized_crop", None, "none")
    batch = next(iter(train))
    assert batch["image"].shape == (9, 3, 224, 224) and batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    seen = collect(val)
    assert seen["target"].tolist() == [0, 0, 1, 1, 2, 2]
    for shown, path in zip(seen["image"], sorted(tree.glob("val/*/*"))):
        picture = F.center_crop(F.resize(Image.open(path), 256), [224, 224])
        torch.testing.assert_close(shown, F.normalize(F.to_tensor(picture), MEAN, STD))


def test_other_statistics_size_and_place(make_cfg: Make, tree: Path) -> None:
    keys = {"ROOT": str(tree), "INPUT_SIZE": 96, "MEAN": [0.5] * 3, "STD": [0.25] * 3, "TRAIN_FRACTION": 0.34}
    train, val, num_data, _ = get_dataset(make_cfg(TYPE="imagenet", **keys), "cpu")
    assert num_data == 3 and train.targets.tolist() == [0, 1, 2]
    assert next(iter(train))["image"].shape[2:] == next(iter(val))["image"].shape[2:] == (96, 96)
    assert train.info.mean == (0.5, 0.5, 0.5)


def test_evaluation_needs_no_training_images(make_cfg: Make, tree: Path) -> None:
    shutil.rmtree(tree / "train")
    cfg = make_cfg(TYPE="imagenet", ROOT=str(tree))
    assert get_val_loader(cfg, "cpu").num_images == 6
    with pytest.raises(UserError, match=r"imagenet/train is missing; expected ImageNet .* in data/imagenet/"):
        get_dataset(cfg, "cpu")


def test_what_is_missing_is_one_line(make_cfg: Make, tree: Path, tmp_path: Path) -> None:
    def message(root: Path) -> str:
        with pytest.raises(UserError) as caught:
            get_dataset(make_cfg(TYPE="imagenet", ROOT=str(root)), "cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"{tmp_path / 'gone' / 'val'} is missing; expected ImageNet (ILSVRC 2012)" in message(tmp_path / "gone")
    shutil.rmtree(tree / "train" / WNIDS[1])
    assert f"differ: val has {WNIDS[1]}, which train lacks" in message(tree)
    shutil.rmtree(tree / "val")
    (tree / "val").mkdir()
    (tree / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    assert "holds no class folders, but 1 image outside class folders; expected" in message(tree)


@pytest.mark.parametrize(("width", "scale"), [(400, 1), (101, 1), (100, 2), (51, 2), (50, 4), (26, 4), (25, 8), (1, 8)])
def test_scale_at_which_a_jpeg_is_decoded(
    width: int, scale: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("jpg", "png"):
        smooth_picture(400, 500).save(tmp_path / f"a.{suffix}")
    sizes = []
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: sizes.append(self.size) or self.copy())
    for suffix in ("jpg", "png"):
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert decode_region(image, (0, 0, 400, 500), (width, width)).size == (width, width)
    assert sizes == [(-(-400 // scale), -(-500 // scale)), (400, 500)]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_reduced_scale_changes_next_to_nothing(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth_picture(1301, 977).convert(mode).save(tmp_path / "a.jpg", quality=92)
    split = FileSplit([tmp_path / "a.jpg"], [0])
    transforms = [
        View(64, margin=True),
        View(100, margin=False),
        *(lambda i, s=s: resized_crop(i, 48, s) for s in range(8)),
    ]
    reduced = [np.asarray(split.load(0, transform)).astype(int) for transform in transforms]
    monkeypatch.setattr(decode, "SCALES", ())
    differences = []
    for transform, fast in zip(transforms, reduced):
        exact = np.asarray(split.load(0, transform)).astype(int)
        assert fast.shape == exact.shape
        differences.append(np.abs(fast - exact).mean())
    assert 0 < max(differences) < 2, differences


def test_workers_stay_for_the_next_epoch(make_cfg: Make, tree: Path, collect: Make) -> None:
    loader = get_dataset(make_cfg(TYPE="imagenet", ROOT=str(tree), NUM_WORKERS=1, INPUT_SIZE=66), "cpu")[0]
    alone = get_dataset(make_cfg(TYPE="imagenet", ROOT=str(tree), INPUT_SIZE=66), "cpu")[0]
    workers = set()
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        alone.set_epoch(epoch)
        shown = collect(loader)
        assert all(torch.equal(value, shown[key]) for key, value in collect(alone).items())
        workers |= {worker.pid for worker in loader._idle._iterator._workers}
    assert len(workers) == 1


def test_broken_off_and_nested_passes(make_cfg: Make, tree: Path, collect: Make) -> None:
    cfg = make_cfg(TYPE="imagenet", ROOT=str(tree), NUM_WORKERS=1, INPUT_SIZE=66)
    cfg.SOLVER.BATCH_SIZE = 2
    loader = get_dataset(cfg, "cpu")[0]
    whole = collect(loader)
    for batch in loader:
        assert torch.equal(batch["index"], whole["index"][:2])
        break
    pairs = [(first["index"], second["index"]) for first, second in zip(loader, loader)]
    for column in zip(*pairs):
        assert torch.equal(torch.cat(column), whole["index"])
    assert torch.equal(collect(loader)["image"], whole["image"])


def test_a_damaged_image_names_its_file(make_cfg: Make, tree: Path) -> None:
    path = sorted((tree / "val" / WNIDS[0]).iterdir())[0]
    path.write_bytes(path.read_bytes()[:900])
    for workers in (0, 1):
        loader = get_val_loader(make_cfg(TYPE="imagenet", ROOT=str(tree), NUM_WORKERS=workers), "cpu")
        with pytest.raises(UserError, match=rf"cannot read the image .*{path.name} .*truncated"):
            list(loader)


def test_sizes_and_times_are_read_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*sorted(tree.glob("train/*/*")), tree / "gone.JPEG"]
    split = FileSplit(files, [0] * len(files))
    read: List[bytes] = []
    real = splits.stat_of
    monkeypatch.setattr(splits, "stat_of", lambda file: read.append(file) or real(file))
    stamps = [stamp for _, stamp in split.stamped_paths()]
    about = files[0].stat()
    assert (stamps[0], stamps[-1]) == (f"{about.st_size}\0{about.st_mtime_ns}", "missing")
    part = split.subset(torch.tensor([0, 9]))
    assert list(part.stamped_paths()) == [(files[0], stamps[0]), (files[9], "missing")]
    alone = FileSplit([files[0], files[9]], [0, 0])
    assert (part.digest(), part.fingerprint()) == (alone.digest(), alone.fingerprint())
    assert len(read) == 10 + 2


def test_names_of_many_files_are_one_array() -> None:
    split = FileSplit([f"/data/ä/{i}.JPEG" for i in range(1000)], [0] * 1000)
    assert split._files.nbytes < 20 * 1000
    assert split.path(999) == Path("/data/ä/999.JPEG")
    assert list(split.subset(torch.tensor([3, 5])).paths()) == [Path("/data/ä/3.JPEG"), Path("/data/ä/5.JPEG")]
