"""Images without labels: which ones a batch gets, and that nothing else about it changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Set, Tuple

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller import distributed
from mdistiller.dataset import Loader, get_dataset, get_val_loader
from mdistiller.dataset.loading import loader as loader_module
from mdistiller.dataset.loading.unlabeled import with_unlabeled
from mdistiller.errors import UserError

Make = Callable[..., Any]
GIVEN = {"MEAN": [0.0, 0.0, 0.0], "STD": [1.0, 1.0, 1.0], "INPUT_SIZE": 16}
SIZES = (5, 3)  # labeled images and others in a batch; 12 labeled images make batches of 5, 5 and 2


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """Return a folder of 7 images without labels."""
    folder = tmp_path / "loose"
    (folder / "deep").mkdir(parents=True)
    for number in range(7):
        pixels = np.full((16, 16, 3), 30 * number, np.uint8)
        Image.fromarray(pixels).save(folder / "deep" / f"{number}.png" if number % 2 else folder / f"{number}.png")
    return folder


@pytest.fixture
def load(make_cfg: Make, image_folder: Path, loose: Path) -> Make:
    """Return a function(**DATASET keys) -> training loader with batches of `SIZES`."""

    def run(**keys: Any) -> Loader:
        given = {"TYPE": "imagefolder", "ROOT": str(image_folder), "UNLABELED": str(loose), "UNLABELED_RATIO": 0.6}
        cfg = make_cfg(**{**given, **GIVEN, **keys})
        cfg.SOLVER.BATCH_SIZE = SIZES[0]
        return get_dataset(cfg, "cpu")[0]

    return run


def batches_of(loader: Loader, epochs: int, start: int = 0) -> List[Dict[str, torch.Tensor]]:
    found = []
    for epoch in range(1, 1 + epochs):
        loader.set_epoch(epoch)
        found += list(loader.iterate(start))
    return found


def test_a_joined_batch_by_hand() -> None:
    image = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    batch = {"image": image, "target": torch.tensor([2, 0]), "index": torch.tensor([4, 1])}
    more = {"image": image[:1] + 1, "target": torch.tensor([0]), "index": torch.tensor([3])}
    joined = with_unlabeled(batch, more, 10, 1.5)
    assert joined["target"].tolist() == [2, 0, -1]
    assert joined["index"].tolist() == [4, 1, 13]
    assert joined["label_weight"].tolist() == [1.5, 1.5, 0.0]
    assert joined["image"][:, 0, 0, 0].tolist() == [0, 0, 1]
    assert joined["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_passes_follow_each_other_through_all_epochs(load: Make, in_memory: str) -> None:
    loader = load(IN_MEMORY=in_memory, NUM_WORKERS=2)
    assert (len(loader), loader.num_images, loader.num_indices) == (3, 12, 19)
    batches = batches_of(loader, epochs=7)
    other: List[int] = []
    for number, batch in enumerate(batches):
        labeled = 2 if number % 3 == 2 else 5
        assert batch["target"][:labeled].min() >= 0 and batch["target"][labeled:].tolist() == [-1] * 3
        assert batch["label_weight"].tolist() == pytest.approx([(labeled + 3) / labeled] * labeled + [0] * 3)
        assert loader.images_in(number % 3) == labeled + 3
        other += (batch["index"][labeled:] - 12).tolist()
    assert sorted(other[:7]) == list(range(7)), "the first epochs show each once"
    passes = [other[start : start + 7] for start in range(0, 63, 7)]  # 7 epochs of 3 batches of 3 are 9 passes
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len(set(map(tuple, passes))) > 1


def test_pixels_are_those_of_the_files(load: Make) -> None:
    loader = load(AUGMENT="none")
    for batch in loader:
        rows = batch["target"] < 0
        number = batch["index"][rows] - 12
        names = [0, 2, 4, 6, 1, 3, 5]  # in the order of the paths: a folder comes after the files beside it
        expected = torch.tensor([names[i] * 30 / 255 for i in number.tolist()])
        torch.testing.assert_close(batch["image"][rows].mean((1, 2, 3)), expected)


def test_labeled_images_are_those_of_a_run_without_others(load: Make) -> None:
    alone, joined = load(UNLABELED=""), load()
    for epoch in (0, 3):
        for loader in (alone, joined):
            loader.set_epoch(epoch)
        for one, both in zip(alone, joined):
            assert "label_weight" not in one
            for key, value in one.items():
                assert torch.equal(value, both[key][: len(value)]), key


@pytest.mark.parametrize("keys", [{}, {"IN_MEMORY": "no"}, {"AUGMENT": "resized_crop"}, {"MIXUP": 0.5}])
def test_a_pass_may_start_in_the_middle(load: Make, keys: Dict[str, Any]) -> None:
    loader = load(**keys)
    loader.set_epoch(4)
    for full, rest in zip(list(loader.iterate())[2:], loader.iterate(2)):
        assert all(torch.equal(full[key], rest[key]) for key in full)
        assert ("soft_target" in full) == ("MIXUP" in keys)


def test_two_processes_share_both_kinds(load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = load()
    whole = batches_of(loader, 2)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        parts.append(batches_of(load(), 2))
    # the last batch of an epoch has two labeled images, fewer than two for each process, and is dropped
    whole = [batch for number, batch in enumerate(whole) if number % 3 < 2]
    labeled = [batch["index"][batch["target"] >= 0].tolist() for batch in whole]
    for number, indices in enumerate(labeled):
        found = [part[number] for part in parts]
        own = [batch["index"][batch["target"] >= 0] for batch in found]
        assert torch.cat(own).tolist() == indices
        assert [int((batch["target"] < 0).sum()) for batch in found] in ([2, 1], [1, 2])
        assert all(batch["label_weight"].max() == pytest.approx(8 / 5) for batch in found)


def test_indices_of_variants_are_those_of_the_batches(load: Make) -> None:
    loader = load()
    loader.set_epoch(2)
    for batch, numbers in zip(loader, loader.variant_indices()):
        assert torch.equal(batch["index"] * loader.num_variants + batch["variant"], numbers)


def test_validation_images_are_left_out(load: Make, image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mdistiller"):
        assert load(UNLABELED=str(image_folder)).num_indices == 12 + 12
    assert "6 images of DATASET.UNLABELED are validation images; they are left out" in caplog.text
    link = image_folder.with_name("link")
    link.symlink_to(image_folder)
    assert load(UNLABELED=str(link / "train")).num_indices == 12 + 12
    with pytest.raises(UserError, match="UNLABELED .*val holds 0 images; expected at least 2"):
        load(UNLABELED=str(link / "val"))
    shutil.rmtree(image_folder / "val")
    held_out = load(UNLABELED=str(image_folder), VAL_FRACTION=0.25)
    assert (held_out.num_images, held_out.num_indices) == (9, 9 + 9)


@pytest.mark.parametrize("keys", [{}, {"IN_MEMORY": "no"}])
def test_passes_show_each_fixed_view_once(load: Make, keys: Dict[str, Any]) -> None:
    loader = load(VIEWS=3, **keys).unlabeled
    views: Dict[int, Set[int]] = {index: set() for index in range(7)}
    for batch in batches_of(loader, 3)[:7]:  # of 3 images: three passes
        for index, view in zip(batch["index"].tolist(), batch["variant"].tolist()):
            views[index].add(view)
    assert all(shown == {0, 1, 2} for shown in views.values())


def test_a_pass_is_drawn_once(load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    plan = loader_module.plan_epoch
    monkeypatch.setattr(loader_module, "plan_epoch", lambda *given, **more: drawn.append(given) or plan(*given, **more))
    loader = load(UNLABELED_RATIO=0.2).unlabeled  # 7 images, 1 in each of 3 batches of an epoch
    plans = []
    for epoch in (1, 2, 2, 3):
        loader.set_epoch(epoch)
        plans.append(loader.plan().order.tolist())
    assert len(drawn) == 2 and plans[1] == plans[2]  # the third epoch begins the second pass
    fresh = load(UNLABELED_RATIO=0.2).unlabeled
    fresh.set_epoch(3)
    assert fresh.plan().order.tolist() == plans[3]


def test_evaluation_does_not_read_them(make_cfg: Make, image_folder: Path) -> None:
    cfg = make_cfg(TYPE="imagefolder", ROOT=str(image_folder), UNLABELED="gone", **GIVEN)
    assert get_val_loader(cfg, "cpu").num_images == 6


FAULTS: List[Tuple[Callable[[Path], object], str]] = [
    (lambda folder: folder.rename(folder.with_name("gone")), "loose is not a folder; expected a folder of images"),
    (lambda folder: [path.unlink() for path in folder.rglob("*.png")], "loose holds 0 images; expected at least 2"),
    (lambda folder: (folder / "0.png").write_bytes(b"PNG"), "0.png (cannot identify image file"),
]


@pytest.mark.parametrize(("damage", "expected"), FAULTS)
def test_faults(load: Make, loose: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(loose)
    with pytest.raises(UserError) as caught:
        load()
    assert expected in str(caught.value) and len(caught.value.faults) == 1


def test_unusable_ones_are_left_out_on_request(load: Make, loose: Path) -> None:
    (loose / "0.png").write_bytes(b"PNG")
    assert load(CORRUPT="skip").num_indices == 18
    for path in loose.rglob("*.png"):
        path.write_bytes(b"PNG")
    with pytest.raises(UserError, match="^no unlabeled image can be read, for example"):
        load(CORRUPT="skip")
