"""From a configuration to loaders: the built-in sets, TRAIN_FRACTION, values out of range."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch

from mdistiller.dataset import DeviceLoader, Splits, StreamLoader, dataset_dict, get_dataset, get_val_loader, options
from mdistiller.dataset.augment.epoch_plan import derive_seed
from mdistiller.dataset.fashion_demo import MEAN, STD, fashion_demo
from mdistiller.dataset.images.stats import measure
from mdistiller.dataset.loading.splits import balanced_part
from mdistiller.errors import UserError

Make = Callable[..., Any]
DEMO = Path(__file__).resolve().parents[2] / "data" / "fashion-mnist-part"


def test_demo_is_balanced_and_complete(make_cfg: Make) -> None:
    splits = fashion_demo(make_cfg(TYPE="fashion_demo", ROOT=str(DEMO)))
    assert splits.train.images.shape == (6000, 32, 32, 3) and splits.val.images.shape == (2000, 32, 32, 3)
    assert splits.train.targets.bincount().tolist() == [600] * 10
    assert splits.val.targets.bincount().tolist() == [200] * 10
    for split in (splits.train, splits.val):
        assert (split.images[..., 0] == split.images[..., 2]).all()
        border = split.images.copy()
        border[:, 2:-2, 2:-2] = 0
        assert border.max() == 0 and split.images.max() == 255
        assert (split.images.reshape(len(split), -1).max(1) > 0).all(), "an empty tile"
    assert measure([splits.train.images]) == (MEAN, STD)
    everything = np.concatenate([splits.train.images, splits.val.images])[..., 0].reshape(8000, -1)
    assert len(np.unique(everything, axis=0)) > 7950, "the two splits overlap"


def test_demo_files() -> None:
    assert "MIT" in (DEMO / "LICENSE").read_text() and "Zalando" in (DEMO / "LICENSE").read_text()
    assert "Fashion-MNIST" in (DEMO / "README.md").read_text()
    sheets = list(DEMO.glob("*.png"))
    assert len(sheets) == 20 and sum(sheet.stat().st_size for sheet in sheets) <= 4.8e6


def test_demo_is_found_from_anywhere(make_cfg: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MDISTILLER_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train, val, num_data, num_classes = get_dataset(make_cfg(TYPE="fashion_demo"), "cpu")
    assert (num_data, val.num_images, num_classes, len(train), len(val)) == (6000, 2000, 10, 94, 32)


def test_demo_missing_or_damaged(make_cfg: Make, tmp_path: Path) -> None:
    cfg = make_cfg(TYPE="fashion_demo", ROOT=str(tmp_path))
    with pytest.raises(UserError, match=r"train-0-t-shirt-top.png is missing; restore"):
        get_dataset(cfg, "cpu")
    (tmp_path / "train-0-t-shirt-top.png").write_bytes((DEMO / "train-0-t-shirt-top.png").read_bytes()[:5000])
    with pytest.raises(UserError, match="is damaged; restore"):
        get_dataset(cfg, "cpu")


def test_train_fraction(make_cfg: Make) -> None:
    def run(fraction: float, seed: int = 0) -> Any:
        cfg = make_cfg(TYPE="fashion_demo", TRAIN_FRACTION=fraction)
        cfg.EXPERIMENT.SEED = seed
        return get_dataset(cfg, "cpu")

    train, val, num_data, _ = run(0.1)
    assert num_data == train.num_images == 600 and val.num_images == 2000
    assert train.targets.bincount().tolist() == [60] * 10
    index = torch.cat([batch["index"] for batch in train])
    assert torch.equal(index.sort().values, torch.arange(600))
    inner = train.images[:, 4:-4, 4:-4]
    assert torch.equal(inner, run(0.1)[0].images[:, 4:-4, 4:-4])
    assert not torch.equal(inner, run(0.1, seed=1)[0].images[:, 4:-4, 4:-4])


def test_fraction_seed(make_cfg: Make) -> None:
    def labels_and_pixels(seed: int, fraction_seed: Any) -> Any:
        cfg = make_cfg(TYPE="fashion_demo", TRAIN_FRACTION=0.1, FRACTION_SEED=fraction_seed)
        cfg.EXPERIMENT.SEED = seed
        return get_dataset(cfg, "cpu")[0].fingerprint()

    assert labels_and_pixels(0, None) == labels_and_pixels(1, 0) == labels_and_pixels(2, 0)
    assert labels_and_pixels(1, None) == labels_and_pixels(0, 1) != labels_and_pixels(0, 0)


def test_augmentation_does_not_change_the_fingerprint(make_cfg: Make) -> None:
    def fingerprint(**keys: Any) -> Any:
        return get_dataset(make_cfg(TYPE="fashion_demo", **keys), "cpu")[0].fingerprint()

    assert fingerprint(PADDING=4) == fingerprint(PADDING=2) == fingerprint(AUGMENT="none")
    assert fingerprint(PADDING=4) != fingerprint(TRAIN_FRACTION=0.5)


def test_balanced_part() -> None:
    targets = torch.tensor([2] * 10 + [0] * 100 + [1] * 3)
    parts = {f: balanced_part(targets, f, seed=0) for f in (0.01, 0.1, 0.5, 1.0)}
    assert targets[parts[0.1]].bincount().tolist() == [10, 1, 1]
    assert targets[parts[0.01]].bincount().tolist() == [1, 1, 1]
    assert torch.equal(parts[1.0], torch.arange(113))
    assert set(parts[0.01].tolist()) <= set(parts[0.1].tolist()) <= set(parts[0.5].tolist())
    assert not torch.equal(parts[0.5], balanced_part(targets, 0.5, seed=1))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TRAIN_FRACTION", 0.0, "TRAIN_FRACTION is 0.0"),
        ("TRAIN_FRACTION", 1.5, "TRAIN_FRACTION is 1.5"),
        ("FRACTION_SEED", -1, "FRACTION_SEED is -1"),
        ("TRAIN_FRACTION", -0.1, "TRAIN_FRACTION is -0.1"),
        ("AUGMENT", "padcrop", "'padcrop'; did you mean pad_crop"),
        ("IN_MEMORY", "maybe", "IN_MEMORY is 'maybe'"),
        ("PADDING", -1, "PADDING is -1"),
        ("ROTATION", -1.0, "ROTATION is -1.0; expected degrees from 0 to 180"),
        ("ROTATION", 200.0, "ROTATION is 200.0; expected degrees from 0 to 180"),
        ("NUM_WORKERS", -1, "NUM_WORKERS is -1"),
        ("INPUT_SIZE", 0, "INPUT_SIZE is 0"),
        ("INPUT_SIZE", "32", "INPUT_SIZE is '32'"),
        ("MEAN", [0.5, 0.5, 0.5], "DATASET.MEAN is given alone; give both"),
        ("TYPE", "cifar1000", "unknown data set 'cifar1000'; did you mean cifar100"),
    ],
)
def test_values_out_of_range(make_cfg: Make, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        get_dataset(make_cfg(**{"TYPE": "fashion_demo", key: value}), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mean", [0.5, [0.5, 0.5], ["a", "b", "c"], [125.3, 123.0, 113.9]])
def test_bad_mean(make_cfg: Make, mean: Any) -> None:
    with pytest.raises(UserError, match="MEAN is"):
        get_dataset(make_cfg(TYPE="fashion_demo", MEAN=mean, STD=[0.2, 0.2, 0.2]), "cpu")


@pytest.mark.parametrize("load", [get_dataset, get_val_loader])
def test_options_are_validated_once(load: Make, make_cfg: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = options.option_errors
    monkeypatch.setattr(options, "option_errors", lambda *args: calls.append(args) or real(*args))
    load(make_cfg(TYPE="fashion_demo"), "cpu")
    assert len(calls) == 1


def test_a_data_set_that_does_not_read_the_options_is_validated_too(
    make_cfg: Make, make_split: Make, make_info: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dataset_dict, "plugin", lambda cfg: Splits(make_split(), make_split(), make_info()))
    assert get_dataset(make_cfg(TYPE="plugin"), "cpu")[2] == 21
    with pytest.raises(UserError, match="NUM_WORKERS is -1"):
        get_dataset(make_cfg(TYPE="plugin", NUM_WORKERS=-1), "cpu")


def test_batch_size(make_cfg: Make) -> None:
    cfg = make_cfg(TYPE="fashion_demo")
    cfg.SOLVER.BATCH_SIZE = 1
    with pytest.raises(UserError, match="BATCH_SIZE is 1"):
        get_dataset(cfg, "cpu")


def test_memory_or_stream(make_cfg: Make) -> None:
    def kind(**keys: Any) -> type:
        train, val, _, _ = get_dataset(make_cfg(TYPE="fashion_demo", **keys), "cpu")
        assert type(train) is type(val)
        return type(train)

    assert kind() is DeviceLoader
    assert kind(IN_MEMORY="no") is kind(IN_MEMORY=False) is StreamLoader  # YAML's bare no
    assert kind(MEMORY_GB=0.01) is StreamLoader
    assert kind(MEMORY_GB=0.01, IN_MEMORY="yes") is DeviceLoader
    assert kind(AUGMENT="resized_crop") is kind(INPUT_SIZE=65) is StreamLoader
    with pytest.raises(UserError, match="IN_MEMORY yes cannot be combined with"):
        kind(AUGMENT="resized_crop", IN_MEMORY="yes")


def test_val_loader_alone(make_cfg: Make, collect: Make) -> None:
    cfg = make_cfg(TYPE="fashion_demo")
    alone, beside = collect(get_val_loader(cfg, "cpu")), collect(get_dataset(cfg, "cpu")[1])
    assert all(torch.equal(value, beside[key]) for key, value in alone.items())


def test_seeds_never_change() -> None:
    assert (derive_seed("epoch", 0, 1), derive_seed("part", 0, 2)) == (424759700494125895, 187085198014858340)


def test_names() -> None:
    folders = {"imagefolder", "imagenet", "tiny_imagenet", "webdataset", "huggingface"}
    assert {"cifar10", "cifar100", "fashion_demo", "python", *folders} == set(dataset_dict)
