"""Fixed views: which view an epoch shows, what a view looks like, and that the two loaders agree."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch

from mdistiller.dataset import DeviceLoader, StreamLoader
from mdistiller.dataset.augment.epoch_plan import plan_epoch
from mdistiller.dataset.augment.views import Views
from mdistiller.dataset.images.decode import View
from mdistiller.dataset.loading.loader import Loader
from tests.dataset.conftest import collect, make_info, make_options, make_split  # noqa: F401 (fixtures)

Make = Callable[..., Any]
CPU = torch.device("cpu")
ANY_KIND = {
    "pad_crop": {"augment": "pad_crop"},
    "rotate_flip": {"augment": "rotate_flip", "rotation": 20.0},
    "resized_crop": {"augment": "resized_crop"},
    "policy": {"augment": "pad_crop", "policy": "rand_augment", "erasing": 0.5},
}

# of epochs 1, 2, … of six images with three views, as they were when views were new
SHOWN = [[0, 0, 0, 2, 0, 1], [2, 2, 2, 1, 2, 0], [1, 1, 1, 0, 1, 2], [1, 2, 1, 0, 0, 2], [0, 1, 0, 2, 2, 1]]


def test_the_order_of_the_views_stays() -> None:
    assert [Views(3, seed=7).in_epoch(6, 0, epoch).tolist() for epoch in range(1, 6)] == SHOWN
    assert Views(3, seed=8).in_epoch(6, 0, 1).tolist() == SHOWN[0]
    assert Views(3, seed=7).in_epoch(6, 1, 1).tolist() == [2, 2, 1, 1, 0, 2]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_as_many_epochs_as_views_show_each_view_once(number: int) -> None:
    views = Views(number, seed=0)
    for turn in range(3):
        shown = torch.stack([views.in_epoch(400, 3, 1 + turn * number + k) for k in range(number)])
        assert torch.equal(shown.sort(0).values, torch.arange(number)[:, None].expand(number, 400))
    counts = views.in_epoch(40_000, 3, 9).bincount(minlength=number)
    assert torch.allclose(counts / 40_000, torch.full((number,), 1 / number), atol=0.02)


def test_the_changes_of_a_view_stay() -> None:
    views = Views(3, seed=7)
    plan = plan_epoch(6, padding=4, seed=0, epoch=1)
    fixed = views.fix(plan, views.in_epoch(6, 0, 1), 4, flips=True, rotation=20.0)
    assert fixed.order.tolist() == plan.order.tolist() == [1, 5, 2, 0, 3, 4]
    assert fixed.view.tolist() == [SHOWN[0][index] for index in fixed.order.tolist()]
    assert fixed.top.tolist() == [8, 8, 6, 3, 8, 0]
    assert fixed.left.tolist() == [4, 8, 8, 0, 3, 5]
    assert fixed.flip.tolist() == [False, False, False, False, True, True]
    assert fixed.angle.tolist() == pytest.approx([8.8174, 0.73, -14.6514, 15.9196, -11.9751, 7.736], abs=1e-4)
    assert views.image_seed(5, 2) == 726692731101891512


def loader_of(kind: str, make: Callable[..., Loader], make_options: Make, **changes: Any) -> Loader:  # noqa: F811
    return make(make_options(**ANY_KIND[kind], **{"views": 3, **changes}))


@pytest.mark.parametrize("kind", ANY_KIND)
def test_an_image_has_as_many_forms_as_views(
    kind: str,
    make_split: Make,  # noqa: F811
    make_info: Make,  # noqa: F811
    make_options: Make,  # noqa: F811
    collect: Make,  # noqa: F811
) -> None:
    def stream(options: Any) -> StreamLoader:
        return StreamLoader(make_split(), View(8, margin=False), make_info(), options, CPU, train=True)

    def device(options: Any) -> DeviceLoader:
        return DeviceLoader(make_split(), make_info(), options, CPU, train=True)

    def forms(loader: Loader, epochs: range, start_step: int = 0) -> dict[tuple[int, int], bytes]:
        found: dict[tuple[int, int], bytes] = {}
        for epoch in epochs:
            loader.set_epoch(epoch)
            seen = collect(loader, start_step)
            for index, view, image in zip(seen["index"].tolist(), seen["variant"].tolist(), seen["image"]):
                assert found.setdefault((index, view), image.numpy().tobytes()) == image.numpy().tobytes()
        return found

    loader = loader_of(kind, stream, make_options)
    assert (loader.num_variants, loader.unlimited_by) == (3, "")
    found = forms(loader, range(1, 4))
    assert found.keys() == {(index, view) for index in range(21) for view in range(3)}
    assert forms(loader, range(4, 8), start_step=1).items() <= found.items()
    assert len(set(found.values())) > 0.8 * len(found)  # two of 8 px may be alike by chance
    # other runs see the same views of the same views' seed only
    assert forms(loader_of(kind, stream, make_options, seed=5), range(1, 4)) == found
    other = forms(loader_of(kind, stream, make_options, views_seed=5), range(1, 4))
    assert sum(other[key] == found[key] for key in found) < len(found) / 4
    if kind in ("pad_crop", "rotate_flip"):
        assert forms(loader_of(kind, device, make_options), range(1, 4)) == found
    assert isinstance(loader, StreamLoader)
    loader.set_epoch(1)
    sampled = torch.cat([batch["image"] for batch in loader.sample(9)])  # fresh ones: no teacher is asked about them
    assert sum(image.numpy().tobytes() in found.values() for image in sampled) < len(sampled) / 2


def test_without_views_nothing_is_fixed(
    make_split: Make,  # noqa: F811
    make_info: Make,  # noqa: F811
    make_options: Make,  # noqa: F811
) -> None:
    options = make_options(augment="resized_crop")
    loader = StreamLoader(make_split(), View(8, margin=False), make_info(), options, CPU, train=True)
    assert (loader.views, loader.num_variants, loader.unlimited_by) == (None, None, "DATASET.AUGMENT resized_crop")
    assert loader.plan().view.eq(-1).all()
    val = StreamLoader(make_split(), View(8, margin=False), make_info(), make_options(views=3), CPU, train=False)
    assert (val.views, val.num_variants) == (None, 1)
