"""The two loaders: content of a batch, augmentation, order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from mdistiller.dataset import ArraySplit, DatasetInfo, DeviceLoader, Loader, StreamLoader
from mdistiller.dataset.augment.epoch_plan import EpochPlan, plan_epoch
from mdistiller.dataset.images.decode import View
from mdistiller.errors import UserError

CPU = torch.device("cpu")
Make = Callable[..., Any]


@pytest.fixture(params=["device", "stream"])
def make_loader(request: pytest.FixtureRequest, make_split: Make, make_info: Make, make_options: Make) -> Make:
    """Return a function(num_images, train, **options) -> loader, of either kind."""

    def make(num_images: int = 21, train: bool = True, **changed: Any) -> Loader:
        split, options = make_split(num_images), make_options(**changed)
        if request.param == "device":
            return DeviceLoader(split, make_info(), options, CPU, train)
        return StreamLoader(split, View(8, margin=False), make_info(), options, CPU, train)

    return make


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def all_variants(padding: int, loader: Loader) -> EpochPlan:
    """Return a plan that shows image k in variant k."""
    n, side = loader.num_images, 2 * padding + 1
    number = torch.arange(n)
    return EpochPlan(
        number, number // 2 // side, number // 2 % side, (number % 2).bool(), torch.zeros(n), torch.full((n,), -1)
    )


@pytest.mark.parametrize("kind", ["device", "stream"])
def test_all_162_variants_are_those_of_torchvision(
    kind: str, make_info: Make, make_options: Make, collect: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(1).integers(1, 256, (8, 8, 3), dtype=np.uint8)
    split = ArraySplit(np.repeat(picture[None], 162, axis=0), [0] * 162)
    loader: Loader
    if kind == "device":
        loader = DeviceLoader(split, make_info(), make_options(), CPU, train=True)
    else:
        loader = StreamLoader(split, View(8, margin=False), make_info(), make_options(), CPU, train=True)
    monkeypatch.setattr(loader, "plan", lambda: all_variants(4, loader))
    found = collect(loader)
    assert loader.num_variants == 162
    padded = F.pad(Image.fromarray(picture), [4])
    seen = set()
    for variant in range(162):
        top, left, flip = variant // 2 // 9, variant // 2 % 9, variant % 2
        expected = F.crop(padded, top, left, 8, 8)
        expected = np.asarray(F.hflip(expected) if flip else expected)
        image = found["image"][variant].permute(1, 2, 0).round().to(torch.uint8).numpy()
        np.testing.assert_array_equal(image, expected, err_msg=f"variant {variant}")
        seen.add(image.tobytes())
        assert found["variant"][variant] == variant
    assert len(seen) == 162


def test_literal_crop_and_normalization(make_options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((2, 2, 2, 3), dtype=np.uint8)
    pixels[1, :, :, 0] = [[51, 102], [153, 204]]
    info = DatasetInfo("test", ("a",), 2, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    loader = DeviceLoader(ArraySplit(pixels, [0, 0]), info, make_options(padding=1), CPU, train=True)
    top, left, flip = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([True, False])
    plan = EpochPlan(torch.tensor([1, 0]), top, left, flip, torch.zeros(2), torch.tensor([-1, -1]))
    monkeypatch.setattr(loader, "plan", lambda: plan)
    batch = next(iter(loader))
    # one row down from the center: the lower row moves up, zeros come in below; then mirrored
    assert torch.allclose(batch["image"][0, 0], torch.tensor([[0.6, 0.2], [-1.0, -1.0]]))
    assert torch.equal(batch["image"][0, 1:], torch.tensor([-1.0, 0.0]).view(2, 1, 1).expand(2, 2, 2))
    assert batch["variant"].tolist() == [(2 * 3 + 1) * 2 + 1, 0]
    assert batch["index"].tolist() == [1, 0]


def test_a_batch(make_loader: Make, make_split: Make, collect: Make) -> None:
    loader = make_loader(augment="none")
    batch = next(iter(loader))
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "image": (torch.float32, (8, 3, 8, 8)),
        "target": (torch.int64, (8,)),
        "index": (torch.int64, (8,)),
        "variant": (torch.int64, (8,)),
    }
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    split, seen = make_split(), collect(loader)
    assert torch.equal(loader.targets, split.targets)
    assert torch.equal(seen["target"], split.targets[seen["index"]])
    images = torch.from_numpy(split.images)[seen["index"]].permute(0, 3, 1, 2)
    assert torch.equal(seen["image"].round().to(torch.uint8), images)
    assert seen["variant"].eq(0).all() and loader.num_variants == 1
    assert (loader.num_images, loader.batch_size, loader.info.num_classes) == (21, 8, 3)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("augment", ["pad_crop", "rotate_flip", "none"])
def test_both_loaders_agree(
    augment: str, flip: bool, make_split: Make, make_info: Make, make_options: Make, collect: Make
) -> None:
    split, info, options = make_split(), make_info(), make_options(augment=augment, flip=flip, rotation=20.0)
    device = DeviceLoader(split, info, options, CPU, train=True)
    stream = StreamLoader(split, View(8, margin=False), info, options, CPU, train=True)
    for loader in (device, stream):
        loader.set_epoch(3)
    one, other = collect(device), collect(stream)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


# of the first epoch of seed 0, as they were before mirroring could be switched off and images rotated
ORDER, TOP, LEFT, FLIP = (
    [0, 5, 3, 2, 4, 1],
    [7, 0, 1, 0, 5, 0],
    [2, 6, 0, 8, 2, 5],
    [True, True, False, True, True, False],
)


def test_the_draws_of_an_epoch_stay() -> None:
    plan = plan_epoch(6, padding=4, seed=0, epoch=0)
    assert [column.tolist() for column in plan[:4]] == [ORDER, TOP, LEFT, FLIP]
    assert not plan.angle.any()
    rotated = plan_epoch(6, padding=0, seed=0, epoch=0, rotation=20.0)
    assert rotated.order.tolist() == ORDER
    assert not (rotated.top.any() or rotated.left.any())


def test_without_mirroring_order_and_crops_stay() -> None:
    with_flips, without = (plan_epoch(500, 4, seed=3, epoch=2, flips=flips, rotation=9.0) for flips in (True, False))
    for name in ("order", "top", "left", "angle"):
        assert torch.equal(getattr(with_flips, name), getattr(without, name)), name
    assert 200 < with_flips.flip.sum() < 300 and not without.flip.any()


def test_without_mirroring_every_image_is_that_crop_unmirrored(make_loader: Make, collect: Make) -> None:
    mirrored, plain = make_loader(), make_loader(flip=False)
    assert (mirrored.num_variants, plain.num_variants) == (162, 81)
    one, other = collect(mirrored), collect(plain)
    flips = (one["variant"] % 2).bool()
    assert flips.any() and not flips.all()
    assert torch.equal(other["variant"], one["variant"] // 2)
    expected = torch.where(flips.view(-1, 1, 1, 1), one["image"].flip(3), one["image"])
    assert torch.equal(other["image"], expected)


@pytest.mark.parametrize("flip", [True, False])
def test_rotations_are_those_of_torchvision(
    flip: bool, make_loader: Make, make_split: Make, make_info: Make, collect: Make
) -> None:
    loader = make_loader(augment="rotate_flip", rotation=20.0, flip=flip)
    loader.set_epoch(4)
    plan, found = loader.plan(), collect(loader)
    assert loader.num_variants is None and "variant" not in found
    assert plan.flip.any() == flip and 15 < plan.angle.abs().max() <= 20
    images = make_split().images
    for place, (index, _, _, flipped, angle, _) in enumerate(zip(*(column.tolist() for column in plan))):
        expected = F.rotate(Image.fromarray(images[index]), angle)
        expected = np.asarray(F.hflip(expected) if flipped else expected)
        np.testing.assert_array_equal(found["image"][place].permute(1, 2, 0).round().numpy(), expected)


def test_draws_are_uniform_and_independent() -> None:
    plan = plan_epoch(162 * 400, padding=4, seed=0, epoch=0)
    counts = plan.variant(4).bincount(minlength=162)
    # 161 degrees of freedom: mean 161, standard deviation 18; offsets drawn from 8 instead of 9 values give over 7,000
    assert chi_square(counts.double()) < 161 + 4 * 18
    # same for the place of an image in the epoch against its form: 16 x 18 cells
    cells = (plan.order * 16 // len(plan.order)) * 18 + plan.variant(4) // 9
    assert chi_square(cells.bincount(minlength=288).double()) < 287 + 4 * 24
    angles = plan_epoch(64_000, padding=0, seed=0, epoch=0, rotation=20.0).angle
    assert angles.abs().max() <= 20
    assert chi_square(((angles + 20) / 40 * 64).long().bincount(minlength=64).double()) < 63 + 4 * 11.2
    following = plan.variant(4)[:-1] // 9 * 18 + plan.variant(4)[1:] // 9
    assert chi_square(following.bincount(minlength=324).double()) < 323 + 4 * 25.5


def test_distribution_is_that_of_the_torchvision_transforms(make_info: Make, make_options: Make, collect: Make) -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[..., 0] = np.arange(1, 65).reshape(8, 8)
    count = 8 * 1500
    transform = transforms.Compose([transforms.RandomCrop(8, padding=4), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = Image.fromarray(picture)
        theirs = [np.asarray(transform(image)) for _ in range(count)]
    split = ArraySplit(np.repeat(picture[None], count, axis=0), [0] * count)
    loader = DeviceLoader(split, make_info(), make_options(batch_size=1000), CPU, train=True)
    ours = collect(loader)["image"].permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    tally: Dict[bytes, list[int]] = {}
    for who, images in enumerate((theirs, ours)):
        for one in images:
            tally.setdefault(one.tobytes(), [0, 0])[who] += 1
    assert len(tally) == 162
    table = torch.tensor(list(tally.values())).double()
    # two samples of one size from one distribution: chi-square with 161 degrees of freedom
    statistic = float(((table[:, 0] - table[:, 1]) ** 2 / table.sum(1)).sum())
    assert statistic < 161 + 4 * 18


def test_an_epoch_depends_on_seed_and_number_alone(make_loader: Make, collect: Make) -> None:
    loader = make_loader()
    loader.set_epoch(1)
    first = collect(loader)
    loader.set_epoch(2)
    second = collect(loader)
    loader.set_epoch(1)
    again = collect(loader)
    fresh = make_loader()
    fresh.set_epoch(1)
    other_seed = make_loader(seed=1)
    other_seed.set_epoch(1)
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
        assert torch.equal(value, collect(fresh)[key]), key
    for key in ("image", "index", "variant"):
        assert not torch.equal(first[key], second[key]), key
        assert not torch.equal(first[key], collect(other_seed)[key]), key


def test_other_random_numbers_are_left_alone(make_loader: Make, collect: Make) -> None:
    before = torch.get_rng_state()
    collect(make_loader())
    collect(make_loader(train=False))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("augment", ["pad_crop", "rotate_flip", "none"])
def test_a_sample_is_full_batches_of_other_choices(make_loader: Make, augment: str) -> None:
    loader = make_loader(augment=augment)
    loader.set_epoch(5)
    before = list(loader)
    sample = list(loader.sample(9))
    assert [len(batch["index"]) for batch in sample] == [8, 8]  # of 21 images
    assert len(torch.cat([batch["index"] for batch in sample]).unique()) == 16
    assert not torch.equal(sample[0]["index"], before[0]["index"])
    assert len(list(loader.sample(1))) == 1
    for once, again in ((before, list(loader)), (sample, list(loader.sample(2)))):
        for batch, other in zip(once, again):
            assert all(torch.equal(value, other[key]) for key, value in batch.items())
    loader.set_epoch(6)
    assert not torch.equal(next(loader.sample(1))["index"], sample[0]["index"])
    (small,) = make_loader(num_images=5, augment=augment).sample(3)
    assert small["index"].sort().values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("augment", ["pad_crop", "rotate_flip"])
def test_both_loaders_draw_the_same_sample(make_split: Make, make_info: Make, make_options: Make, augment: str) -> None:
    split, options = make_split(21), make_options(augment=augment)
    loaders = (
        DeviceLoader(split, make_info(), options, CPU, True),
        StreamLoader(split, View(8, margin=False), make_info(), options, CPU, True),
    )
    for one, other in zip(*(loader.sample(2) for loader in loaders)):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_sample_of_a_stream_reads_its_own_images_only(
    make_split: Make, make_info: Make, make_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(21)
    loader = StreamLoader(split, View(8, margin=False), make_info(), make_options(num_workers=0), CPU, True)
    load, read = split.load, []
    monkeypatch.setattr(split, "load", lambda index, view: read.append(index) or load(index, view))
    (batch,) = loader.sample(1)
    assert read == batch["index"].tolist()
    crops = StreamLoader(split, View(8, False), make_info(), make_options(augment="resized_crop"), CPU, True)
    kinds = [torch.cat([batch["image"] for batch in batches]) for batches in (crops.sample(2), crops.sample(2))]
    assert torch.equal(*kinds)


def test_start_step_continues_a_pass(make_loader: Make, collect: Make) -> None:
    loader = make_loader()
    loader.set_epoch(5)
    whole = collect(loader)
    for step in (0, 1, 2):
        rest = collect(loader, step)
        for key, value in whole.items():
            assert torch.equal(value[8 * step :], rest[key]), (step, key)
    assert list(loader.iterate(len(loader))) == []
    with pytest.raises(ValueError, match="start_step is 4; an epoch has 3 batches"):
        list(loader.iterate(4))


@pytest.mark.parametrize(
    ("num_images", "train", "sizes"),
    [(21, True, [8, 8, 5]), (17, True, [8, 8]), (17, False, [8, 8, 1]), (16, True, [8, 8]), (2, True, [2])],
)
def test_last_batch(make_loader: Make, num_images: int, train: bool, sizes: list[int]) -> None:
    loader = make_loader(num_images, train)
    batches = list(loader)
    assert [len(batch["index"]) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    index = torch.cat([batch["index"] for batch in batches])
    assert len(index.unique()) == sum(sizes), "an image twice"
    assert num_images < 8 or index.equal(torch.arange(num_images)) != train


def test_one_image_is_no_training_set(make_loader: Make) -> None:
    with pytest.raises(UserError, match="has 1 image"):
        make_loader(1)
    assert len(make_loader(1, train=False)) == 1


def test_validation_is_not_augmented(make_loader: Make, make_split: Make, collect: Make) -> None:
    seen = collect(make_loader(train=False))
    assert torch.equal(seen["index"], torch.arange(21))
    images = torch.from_numpy(make_split().images).permute(0, 3, 1, 2)
    assert torch.equal(seen["image"].round().to(torch.uint8), images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("augment", ["pad_crop", "resized_crop", "rotate_flip"])
def test_workers_do_not_change_a_stream(
    augment: str, make_split: Make, make_info: Make, make_options: Make, collect: Make
) -> None:
    split = make_split(21, size=20)
    runs = []
    for num_workers in (0, 1, 2):
        options = make_options(augment=augment, num_workers=num_workers, rotation=20.0)
        loader = StreamLoader(split, View(8, margin=augment == "resized_crop"), make_info(), options, CPU, train=True)
        runs.append(collect(loader))
    assert ("variant" in runs[0]) == (loader.num_variants is not None) == (augment == "pad_crop")
    for run in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, run[key]), key


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_signals_to_every_process_leave_the_workers_at_work(
    make_split: Make, make_info: Make, make_options: Make
) -> None:
    split, view = make_split(100), View(8, margin=False)  # more batches than the workers read ahead
    alone = StreamLoader(split, view, make_info(), make_options(num_workers=0), CPU, train=True)
    loader = StreamLoader(split, view, make_info(), make_options(num_workers=2), CPU, train=True)
    rest = iter(loader)
    batches = [next(rest), next(rest)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
    batches += rest
    for expected, got in zip(alone, batches):
        assert torch.equal(expected["image"], got["image"])
    assert len(batches) == len(alone)
