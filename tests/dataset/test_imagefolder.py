"""Your own images: what is read, what is refused, statistics that are measured once."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from mdistiller.dataset import StreamLoader, get_dataset, get_val_loader, imagefolder
from mdistiller.dataset.images import stats
from mdistiller.dataset.loading import statistics
from mdistiller.errors import UserError

Make = Callable[..., Any]
GIVEN = {"MEAN": [0.5, 0.5, 0.5], "STD": [0.25, 0.25, 0.25]}


@pytest.fixture
def load(make_cfg: Make, image_folder: Path) -> Make:
    """Return a function(**DATASET keys) -> get_dataset of the folder."""

    def run(**keys: Any) -> Any:
        return get_dataset(make_cfg(**{"TYPE": "imagefolder", "ROOT": str(image_folder), **keys}), "cpu")

    return run


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> List[Any]:
    """Return a list that receives the result of each measurement."""
    results: List[Any] = []
    real = stats.measure

    def measure(chunks: Any) -> Any:
        results.append(real(chunks))
        return results[-1]

    for module in (imagefolder, statistics):
        monkeypatch.setattr(module, "measure", measure)
    return results


def expected_view(path: Path, size: int) -> np.ndarray:
    """Return the image as torchvision transforms it."""
    image = F.center_crop(F.resize(Image.open(path).convert("RGB"), size), [size, size])
    return np.asarray(image)


def test_images_labels_and_size(load: Make, image_folder: Path, collect: Make) -> None:
    train, val, num_data, num_classes = load(INPUT_SIZE=16, **GIVEN)
    assert (num_data, num_classes, val.num_images) == (12, 3, 6)
    assert train.info.classes == ("ant", "bee", "cat") and train.info.input_size == 16
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    seen = collect(val)
    files = sorted((image_folder / "val").glob("*/*"))
    for image, target, path in zip(seen["image"], seen["target"], files):
        expected = torch.from_numpy(expected_view(path, 16).copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(image, (expected - 0.5) / 0.25)
        assert train.info.classes[target] == path.parent.name


def test_default_size_is_said(load: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mdistiller"):
        train = load(**GIVEN)[0]
    assert train.info.input_size == 32
    assert [record.getMessage() for record in caplog.records] == [
        "DATASET.INPUT_SIZE is not set: images are resized to 32 px",
        "6 of 12 training images are converted to RGB (3 L, 3 RGBA)",
        "3 of 6 validation images are converted to RGB (3 L)",
    ]


@pytest.mark.parametrize("keys", [{}, {"INPUT_SIZE": 24, "AUGMENT": "none"}])
def test_memory_and_stream_agree(load: Make, collect: Make, keys: Any) -> None:
    memory, stream = load(**keys), load(IN_MEMORY="no", NUM_WORKERS=1, **keys)
    assert isinstance(stream[0], StreamLoader) and not isinstance(memory[0], StreamLoader)
    for one, other in zip(memory[:2], stream[:2]):
        a, b = collect(one), collect(other)
        assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_large_images_get_the_imagenet_recipe(load: Make, image_folder: Path, collect: Make) -> None:
    train, val, _, _ = load(INPUT_SIZE=70, **GIVEN)
    assert train.augment == "resized_crop" and next(iter(train))["image"].shape == (12, 3, 70, 70)
    path = sorted((image_folder / "val").glob("*/*"))[0]
    shown = F.center_crop(F.resize(Image.open(path).convert("RGB"), 80), [70, 70])
    expected = (torch.from_numpy(np.asarray(shown).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(collect(val)["image"][0], expected)


def test_links_and_deeper_folders(load: Make, image_folder: Path, tmp_path: Path) -> None:
    shutil.move(str(image_folder / "train" / "bee"), str(tmp_path / "elsewhere"))
    (image_folder / "train" / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    deeper = image_folder / "train" / "cat" / "more"
    deeper.mkdir()
    shutil.copy(str(image_folder / "train" / "cat" / "0.png"), str(deeper))
    (deeper / "loop").symlink_to(image_folder / "train" / "cat", target_is_directory=True)
    (image_folder / "train" / ".hidden").mkdir()
    (image_folder / "train" / "notes.txt").write_text("not a class")
    (image_folder / "train" / "ant" / "notes.txt").write_text("not an image")
    assert load(**GIVEN)[0].targets.bincount().tolist() == [4, 4, 5]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "set is not a folder; expected <DATASET.ROOT>/train/<class>/<image>"),
        (lambda root: [shutil.rmtree(root / s) for s in ("train", "val")], "set is empty; expected"),
        (lambda root: shutil.rmtree(root / "train"), "train is missing; expected"),
        (lambda root: shutil.rmtree(root / "val"), "val is missing; expected"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "train holds no class folders"),
        (lambda root: [p.unlink() for p in (root / "train" / "bee").iterdir()], "train/bee holds no image; add some"),
        (lambda root: [p.unlink() for p in (root / "val" / "cat").iterdir()], "val/cat holds no image"),
        (
            lambda root: [p.unlink() for name in ("ant", "cat") for p in (root / "train" / name).iterdir()],
            "the class folders ant, cat of .*/train hold no image; add some",
        ),
        (lambda root: (root / "val" / "dog").mkdir(), "val has dog, which train lacks; give"),
        (lambda root: shutil.rmtree(root / "val" / "ant"), "val lacks ant, which train has; give"),
    ],
)
def test_wrong_layout(load: Make, image_folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(image_folder)
    with pytest.raises(UserError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_root_not_set(load: Make) -> None:
    with pytest.raises(UserError, match="ROOT is not set; expected"):
        load(ROOT="")


@pytest.mark.parametrize("keys", [{"NUM_WORKERS": 2}, {"IN_MEMORY": "no"}, {"IN_MEMORY": "no", "NUM_WORKERS": 1}])
@pytest.mark.parametrize("given", [{}, GIVEN])
def test_corrupt_image(load: Make, image_folder: Path, collect: Make, keys: Any, given: Any) -> None:
    path = image_folder / "train" / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read the image .*bee/3\.png \(") as caught:
        collect(load(**keys, **given)[0])
    assert "\n" not in str(caught.value)


def test_image_of_16_bits_is_refused(load: Make, image_folder: Path) -> None:
    Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(image_folder / "val" / "ant" / "0.png")
    with pytest.raises(UserError, match=r"ant/0\.png \(more than 8 bits a channel"):
        load()


def test_statistics_are_right(load: Make, image_folder: Path, measured: List[Any]) -> None:
    info = load(INPUT_SIZE=16)[0].info
    pixels = np.stack([expected_view(path, 16) for path in sorted((image_folder / "train").glob("*/*"))]) / 255
    np.testing.assert_allclose(info.mean, pixels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(info.std, pixels.std((0, 1, 2)), atol=5.1e-5)
    assert all(value == round(value, 4) for value in info.mean + info.std)


def test_statistics_are_measured_once(load: Make, make_cfg: Make, image_folder: Path, measured: List[Any]) -> None:
    first = load()[0].info
    assert load()[0].info == load(TRAIN_FRACTION=0.5)[0].info == load(IN_MEMORY="no")[0].info == first
    assert get_val_loader(make_cfg(TYPE="imagefolder", ROOT=str(image_folder)), "cpu").info == first
    assert len(measured) == 1
    load(INPUT_SIZE=16)
    assert len(measured) == 2
    load(AUGMENT="resized_crop")
    assert len(measured) == 3
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(image_folder / "train" / "ant" / "new.png")
    assert load()[0].info.mean != first.mean
    assert len(measured) == 4
    os.utime(image_folder / "train" / "ant" / "0.png", (1, 1))
    load()
    assert len(measured) == 5


def test_statistics_of_a_sample(
    load: Make, measured: List[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mdistiller")
    whole = load(IN_MEMORY="no")[0].info
    monkeypatch.setattr(statistics, "SAMPLE", 6)
    part = load(IN_MEMORY="no")[0].info
    lines = [record.getMessage() for record in caplog.records if "measured over" in record.getMessage()]
    assert [line.split()[2] for line in lines] == ["12", "6"]
    assert part.mean != whole.mean and len(measured) == 2
    assert load()[0].info.mean == whole.mean, "in memory all images count"
    assert load(IN_MEMORY="no")[0].info == part and len(measured) == 2


def test_given_statistics_are_not_measured(load: Make, measured: List[Any], cache: Path) -> None:
    info = load(**GIVEN)[0].info
    assert info.mean == (0.5, 0.5, 0.5) and info.std == (0.25, 0.25, 0.25)
    assert measured == [] and not any(cache.iterdir())


def test_damaged_memory_is_measured_again(load: Make, measured: List[Any], cache: Path) -> None:
    first = load()[0].info
    (file,) = cache.glob("statistics/*.json")
    for text in ("", "[]", json.dumps({**json.loads(file.read_text()), "mean": [1]})):
        file.write_text(text)
        assert load()[0].info == first
    assert len(measured) == 4
    assert load()[0].info == first and len(measured) == 4


def test_unwritable_cache_is_one_warning(
    load: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("MDISTILLER_CACHE", str(cache / "file"))
    train = load()[0]
    assert train.num_images == 12
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "cannot write the cache" in warnings[0].getMessage()


def test_a_constant_channel_can_be_divided_by() -> None:
    mean, std = stats.measure([np.full((2, 4, 4, 3), 51, dtype=np.uint8)])
    assert mean == (0.2, 0.2, 0.2) and std == (1.0, 1.0, 1.0)


def test_fraction_of_a_folder(load: Make) -> None:
    train, _, num_data, _ = load(TRAIN_FRACTION=0.5, **GIVEN)
    assert num_data == 6 and train.targets.tolist() == [0, 0, 1, 1, 2, 2]
