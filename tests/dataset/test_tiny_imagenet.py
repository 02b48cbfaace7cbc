"""The `tiny_imagenet` set, in its archive's layout and with the validation images sorted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.dataset import DeviceLoader, get_dataset, get_val_loader
from mdistiller.errors import UserError
from mdistiller.models import build_model, tiny_imagenet_model_dict

Make = Callable[..., Any]
WNIDS = ("n02124075", "n01443537", "n04067472")  # wnids.txt is not sorted either
COLORS = {"n01443537": 40, "n02124075": 120, "n04067472": 220}
VAL = ("n04067472", "n01443537", "n04067472", "n02124075")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the archive's layout with 3 classes of 4 training images, and 4 validation images."""
    root = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for number in range(4):
            save(folder / f"{wnid}_{number}.JPEG", wnid)
        (folder.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for number, wnid in enumerate(VAL):
        save(root / "val" / "images" / f"val_{number}.JPEG", wnid)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("\n".join(f"{wnid}\tsomething" for wnid in WNIDS))
    return root


def save(path: Path, wnid: str) -> None:
    """Write a picture of the class's brightness, gray for the last class, as a few of the real ones are."""
    shape = (64, 64) if wnid == WNIDS[2] else (64, 64, 3)
    Image.fromarray(np.full(shape, COLORS[wnid], np.uint8)).save(path)


def sort_validation(root: Path, below: str) -> None:
    for number, wnid in enumerate(VAL):
        folder = root / "val" / wnid / below
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(str(root / "val" / "images" / f"val_{number}.JPEG"), str(folder))
    (root / "val" / "images").rmdir()


def test_the_archives_layout(make_cfg: Make, root: Path, monkeypatch: pytest.MonkeyPatch, collect: Make) -> None:
    monkeypatch.setenv("MDISTILLER_DATA", str(root.parent))
    train, val, num_data, num_classes = get_dataset(make_cfg(TYPE="tiny_imagenet"), "cpu")
    assert (num_data, num_classes, val.num_images) == (12, 3, 4)
    assert isinstance(train, DeviceLoader) and isinstance(val, DeviceLoader)
    info = train.info
    assert (info.name, info.classes, info.input_size) == ("tiny_imagenet", tuple(sorted(WNIDS)), 64)
    assert info.mean == (0.4802, 0.4481, 0.3975) and info.std == (0.2302, 0.2265, 0.2262)
    assert (train.augment, train.padding, val.augment) == ("pad_crop", 4, "none")
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    seen = collect(val)
    assert seen["target"].tolist() == [2, 0, 2, 1]
    levels = seen["image"][:, 0].mean((1, 2)) * 0.2302 + 0.4802
    expected = torch.tensor([COLORS[wnid] / 255 for wnid in VAL])
    torch.testing.assert_close(levels, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("annotated", [False, True])
def test_sorted_validation_images(make_cfg: Make, root: Path, collect: Make, below: str, annotated: bool) -> None:
    cfg = make_cfg(TYPE="tiny_imagenet", ROOT=str(root))
    before = collect(get_val_loader(cfg, "cpu"))
    sort_validation(root, below)
    if not annotated:
        (root / "val" / "val_annotations.txt").unlink()
    after = collect(get_val_loader(cfg, "cpu"))
    assert after["target"].tolist() == [0, 1, 2, 2]
    order = before["target"].argsort(stable=True)
    assert torch.equal(after["image"], before["image"][order])


def test_what_is_missing_is_one_line(make_cfg: Make, root: Path, tmp_path: Path) -> None:
    def message(place: Path = root) -> str:
        with pytest.raises(UserError) as caught:
            get_val_loader(make_cfg(TYPE="tiny_imagenet", ROOT=str(place)), "cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "gone/train is missing; unpack tiny-imagenet-200.zip (http" in message(tmp_path / "gone")
    annotations = root / "val" / "val_annotations.txt"
    text = annotations.read_text()
    for change, reason in (
        ("val_4.JPEG\tn00000000\t0\t0\t1\t1\n", "entry 5 is 'val_4.JPEG n00000000 0 0 1 1'; expected an image and"),
        ("val_4.JPEG\n", "entry 5 is 'val_4.JPEG'; expected"),
        ("val_4.JPEG\tn01443537\n", "cannot read the image .*val_4.JPEG"),
    ):
        annotations.write_text(text + change)
        with pytest.raises(UserError, match=reason):
            get_val_loader(make_cfg(TYPE="tiny_imagenet", ROOT=str(root)), "cpu")
    annotations.write_text("")
    assert "val_annotations.txt is empty" in message()
    annotations.unlink()
    assert "val_annotations.txt, which gives the classes of" in message()
    assert "is missing; unpack" in message()


@pytest.mark.parametrize("name", list(tiny_imagenet_model_dict))
def test_every_model_works_at_64_pixels(name: str) -> None:
    model = build_model(name, num_classes=200, dataset="tiny_imagenet", input_size=64).eval()
    with torch.no_grad():
        logits, feats = model(torch.randn(1, 3, 64, 64))
    assert logits.shape == (1, 200) and logits.isfinite().all()
    assert feats["pooled_feat"].shape == (1, model.get_classifier().in_features)
