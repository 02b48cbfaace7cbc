"""tools/make_tin32.py: the images of the studies, from Tiny-ImageNet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mdistiller.dataset import get_dataset
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from tools.make_tin32 import CLASSES, make_images

OTHER = "n99999999"  # a class that the studies do not use


@pytest.fixture
def archive(tmp_path):
    """Return Tiny-ImageNet's layout: all classes of the studies and another one, two training images in each."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for number, name in enumerate([*CLASSES, OTHER]):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        picture = Image.new("RGB", (64, 64), (2 * number, 100, 200))
        for file in (folder / f"{name}_0.JPEG", folder / f"{name}_1.JPEG", root / "val/images" / f"val_{number}.JPEG"):
            picture.save(file)
        rows.append(f"val_{number}.JPEG\t{name}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return root


def test_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 100


def test_the_studies_can_read_the_images(archive, tmp_path):
    target = tmp_path / "data" / "tin32-dev"
    (tmp_path / "data/tin32-dev.part/train/of a killed process").mkdir(parents=True)
    assert make_images(str(archive), target) == 300
    settings = load_cfg("imagefolder/vanilla", ["DATASET.ROOT", str(target), "DATASET.INPUT_SIZE", "32"])
    _, val_loader, num_images, num_classes = get_dataset(settings)
    assert (num_images, num_classes, len(val_loader.targets)) == (200, 100, 100)
    with Image.open(target / "val" / CLASSES[30] / "val_30.JPEG") as picture:
        assert picture.size == (32, 32)
        assert np.abs(np.asarray(picture).astype(int) - (60, 100, 200)).max() <= 3
    assert not (tmp_path / "data" / "tin32-dev.part").exists()
    with pytest.raises(UserError, match="tin32-dev exists; remove it"):
        make_images(str(archive), target)


def test_another_data_set(archive, tmp_path):
    for folder in (archive / "train").glob("n0*"):
        folder.rename(folder.with_name(f"x{folder.name}"))
    (archive / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{OTHER}\t0\t0\t63\t63\n")
    with pytest.raises(UserError, match=f"lacks [0-9]+ of 100 classes, such as {CLASSES[0]}"):
        make_images(str(archive), tmp_path / "out")
