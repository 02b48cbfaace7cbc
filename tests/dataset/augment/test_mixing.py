"""Mixed batches: literal values, the same in several processes and in both loaders, and repeated exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from mdistiller import distributed
from mdistiller.dataset import get_dataset
from mdistiller.dataset.augment.mixing import Mixing, with_neighbor
from mdistiller.engine.cfg import load_cfg
from tests.conftest import make_image_folder

BOTH = ["DATASET.MIXUP", "0.7", "DATASET.CUTMIX", "1.0"]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """36 images, five batches of 8 or fewer."""
    return make_image_folder(tmp_path / "images")


def batch_of(size: int, side: int = 8) -> dict[str, torch.Tensor]:
    image = torch.arange(float(size)).view(-1, 1, 1, 1).expand(size, 3, side, side)
    image = image.contiguous(memory_format=torch.channels_last)
    return {"image": image, "target": torch.arange(size), "index": 10 + torch.arange(size)}


@pytest.mark.parametrize("seed", range(4))
def test_mixup_by_hand(seed: int) -> None:
    state = torch.get_rng_state()
    mixed = Mixing(0.5, 0.0, 3)(batch_of(3), seed, neighbor_first=False)
    assert torch.equal(torch.get_rng_state(), state)
    share = float(mixed["soft_target"][1, 1])  # of the image itself
    assert 0 <= share <= 1
    rest = 1 - share
    torch.testing.assert_close(
        mixed["soft_target"], torch.tensor([[share, 0, rest], [rest, share, 0], [0, rest, share]])
    )
    values = torch.tensor([2 * rest, share, 1 * rest + 2 * share]).view(-1, 1, 1, 1).expand(3, 3, 8, 8)
    torch.testing.assert_close(mixed["image"], values.contiguous())
    assert mixed["image"].is_contiguous(memory_format=torch.channels_last)
    assert mixed["target"].tolist() == ([0, 1, 2] if share >= rest else [2, 0, 1])
    assert mixed["index"].tolist() == [10, 11, 12]


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_by_hand(seed: int) -> None:
    mixed = Mixing(0.0, 1.0, 3)(batch_of(3), seed, neighbor_first=False)
    pasted = mixed["image"][1] == 0  # from the image before it
    assert torch.equal(pasted | (mixed["image"][1] == 1), torch.ones(3, 8, 8, dtype=torch.bool))
    assert float(mixed["soft_target"][1, 0]) == pytest.approx(float(pasted.float().mean()))
    rows, columns = pasted[0].any(1).nonzero(), pasted[0].any(0).nonzero()
    if len(rows):  # a whole box
        assert int(pasted[0].sum()) == len(rows) * len(columns)
        assert int(rows[-1] - rows[0]) == len(rows) - 1
    torch.testing.assert_close(mixed["soft_target"].sum(1), torch.ones(3))


def test_it_is_torchvisions() -> None:
    batch = {**batch_of(5), "image": torch.randn(5, 3, 8, 8)}
    found = Mixing(0.3, 0.0, 5)(batch, 7, neighbor_first=False)
    torch.manual_seed(7)
    torch.randint(1, ())
    image, soft = v2.MixUp(alpha=0.3, num_classes=5)(batch["image"], batch["target"])
    assert torch.equal(found["image"], image)
    assert torch.equal(found["soft_target"], soft)


def test_both_are_used_in_turn() -> None:
    mixing = Mixing(1.0, 1.0, 4)
    batches = [mixing(batch_of(4), seed, neighbor_first=False)["image"] for seed in range(40)]
    pasted = sum(bool((image == image.round()).all()) for image in batches)
    assert 10 < pasted < 30


def test_neighbors() -> None:
    assert with_neighbor(slice(8, 10), slice(8, 12)).tolist() == [11, 8, 9]
    assert with_neighbor(slice(10, 12), slice(8, 12)).tolist() == [9, 10, 11]


def loader_of(folder: object, *overrides: str):  # type: ignore[no-untyped-def]
    cfg = load_cfg(
        None,
        [
            *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(folder), "DATASET.INPUT_SIZE", "16"),
            *("DATASET.NUM_WORKERS", "0", "SOLVER.BATCH_SIZE", "8", *overrides),
        ],
    )
    return get_dataset(cfg, "cpu")


def alike(one, other) -> None:  # type: ignore[no-untyped-def]
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other):
        assert a.keys() == b.keys() >= {"image", "target", "index", "soft_target"}
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=0, atol=0)


def test_an_epoch_is_mixed_and_resumes(image_folder) -> None:  # type: ignore[no-untyped-def]
    train, val, _, _ = loader_of(image_folder, *BOTH)
    plain, _, _, _ = loader_of(image_folder)
    train.set_epoch(3)
    plain.set_epoch(3)
    whole = list(train)
    assert [batch["index"].tolist() for batch in whole] == [batch["index"].tolist() for batch in plain]
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(whole, plain))
    assert "variant" not in whole[0]
    alike(train.iterate(2), whole[2:])
    train.set_epoch(4)
    assert not torch.equal(next(iter(train))["soft_target"], whole[0]["soft_target"])
    assert "soft_target" not in next(iter(val))
    assert "soft_target" not in next(train.sample(1))
    assert (train.unlimited_by, val.unlimited_by, plain.unlimited_by) == ("DATASET.MIXUP 0.7", "", "")


def test_both_loaders_mix_alike(image_folder) -> None:  # type: ignore[no-untyped-def]
    held, _, _, _ = loader_of(image_folder, *BOTH, "DATASET.IN_MEMORY", "yes")
    streamed, _, _, _ = loader_of(image_folder, *BOTH, "DATASET.IN_MEMORY", "no")
    assert type(held) is not type(streamed)
    for loader in (held, streamed):
        loader.set_epoch(1)
    alike(held, streamed)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_the_shares_of_processes_make_the_batch(image_folder, monkeypatch, in_memory) -> None:  # type: ignore[no-untyped-def]
    loader, _, _, _ = loader_of(image_folder, *BOTH, "DATASET.IN_MEMORY", in_memory)
    loader.set_epoch(2)
    whole = list(loader)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(loader))
    joined = [{key: torch.cat([share[key] for share in step]) for key in step[0]} for step in zip(*shares)]
    alike(joined, whole[: len(joined)])
    assert len(joined) >= 4
