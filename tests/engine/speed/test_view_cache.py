"""The teacher cache of fixed views: exact, shared, limited in size, and refused in one line where it cannot be."""

from __future__ import annotations

import os
import time

import pytest
import torch

from mdistiller.engine.build import build_trainer
from mdistiller.engine.speed.table_folder import PREFIX, prepare_folder
from mdistiller.engine.speed.teacher_cache import CachedTeacher
from mdistiller.engine.speed.top_logits import TopLogits
from mdistiller.errors import UserError
from tests.engine.speed.test_teacher_cache import CPU, cached, fill, losses, opened, settings  # noqa: F401 (a fixture)

CROPS = ["DATASET.AUGMENT", "resized_crop", "DATASET.VIEWS", "2"]
FOLDER = ["TEACHER_CACHE", "./folder"]
KINDS = {
    "resized_crop": CROPS,
    "policy": [*CROPS, "DATASET.POLICY", "trivial_augment", "DATASET.ERASING", "0.5"],
    "in memory": ["DATASET.AUGMENT", "rotate_flip", "DATASET.VIEWS", "2", "DATASET.IN_MEMORY", "yes"],
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_teacher_sees_each_view_once(settings, kind):  # type: ignore[no-untyped-def]  # noqa: F811
    trainer = build_trainer(settings("KD", *KINDS[kind]))
    loader = trainer.train_loader
    cache, teacher = cached(trainer)
    for epoch in range(1, 6):
        loader.set_epoch(epoch)
        for batch in cache.serve(loader, loader.iterate()):
            expected, feats = teacher.teacher(batch["image"])
            torch.testing.assert_close(cache(batch["image"])[0], expected, atol=1e-5, rtol=1e-5)
            served = cache(batch["image"])[1]["pooled_feat"]
            torch.testing.assert_close(served, feats["pooled_feat"], atol=1e-5, rtol=1e-5)
        assert teacher.images == min(epoch, 2) * loader.num_images


@pytest.mark.parametrize("method", ["KD", "SFAKD"])
def test_training_takes_the_same_course(settings, method):  # type: ignore[no-untyped-def]  # noqa: F811
    plain = losses(build_trainer(settings(method, *CROPS, name="plain")))
    other = losses(build_trainer(settings(method, *CROPS, "TEACHER_CACHE", "memory", name="cached")))
    torch.testing.assert_close(torch.tensor(other), torch.tensor(plain), atol=1e-5, rtol=1e-4)


def test_runs_share_the_views_of_one_seed(settings, tmp_path):  # type: ignore[no-untyped-def]  # noqa: F811
    _, networks, trainer = opened(settings, *CROPS, *FOLDER)
    fill(networks, trainer)
    line, _, _ = opened(settings, *CROPS, *FOLDER, "DATASET.VIEWS_SEED", "0", "EXPERIMENT.SEED", "3")
    assert "36 images × 2 views × 3 values" in line
    assert "found, 50.0 % known" in line
    for more in (
        ["EXPERIMENT.SEED", "3"],
        ["DATASET.POLICY", "rand_augment"],
        ["DATASET.ERASING", "0.1"],
        ["DATASET.FLIP", "False"],
    ):
        assert "differs in augmentation), 0.0 % known" in opened(settings, *CROPS, *FOLDER, *more)[0]
    line, _, _ = opened(settings, *CROPS, *FOLDER, "DATASET.VIEWS", "4")
    assert "differs in augmentation, rows), 0.0 % known" in line


def test_a_teacher_with_an_input_of_its_own_finds_its_table(settings):  # type: ignore[no-untyped-def]  # noqa: F811
    own = [*CROPS, *FOLDER, "DISTILLER.TEACHER_INPUT", "{mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}"]
    _, networks, trainer = opened(settings, *own)
    fill(networks, trainer)
    assert "found, 50.0 % known" in opened(settings, *own)[0]


@torch.no_grad()
def test_top_logits_are_stored_and_served(settings):  # type: ignore[no-untyped-def]  # noqa: F811
    line, networks, trainer = opened(settings, *CROPS, *FOLDER, "TEACHER_TOP_LOGITS", "1")
    assert "2 views × 3 values" in line  # a logit, its class, and the others' logit
    assert "differs in top_logits, widths" not in line
    trainer.train_loader.set_epoch(1)
    top = TopLogits(3, 1)
    with networks.in_place():
        for batch in networks.serve(trainer.train_loader.iterate()):
            served = trainer.distiller.teacher(batch["image"])[0]
            exact = trainer.distiller.teacher.teacher(batch["image"])[0]
            torch.testing.assert_close(served, top.decode(top.encode(exact)), atol=1e-5, rtol=1e-5)
            assert (served - exact).abs().max() > 1e-3
    assert "differs in top_logits" in opened(settings, *CROPS, *FOLDER)[0]
    assert "36 images × 2 views × 3 values" in opened(settings, *CROPS, *FOLDER, "TEACHER_TOP_LOGITS", "9")[0]


@pytest.mark.parametrize("choice", ["memory", "./folder"])
def test_a_table_beyond_the_limit_is_not_made(settings, tmp_path, choice):  # type: ignore[no-untyped-def]  # noqa: F811
    line, networks, trainer = opened(settings, *CROPS, "TEACHER_CACHE", choice, "TEACHER_CACHE_GB", "1e-7")
    note = "note: without a teacher cache, DATASET.VIEWS 2 saves no time, and limits the augmentation;"
    assert line.startswith(note)
    assert not isinstance(networks._teacher, CachedTeacher)
    assert not list(tmp_path.glob("folder/*"))
    assert len(fill(networks, trainer)) == len(trainer.train_loader)
    with pytest.raises(UserError, match="TEACHER_TOP_LOGITS is 1, but there is no teacher cache"):
        opened(settings, *CROPS, "TEACHER_CACHE", choice, "TEACHER_CACHE_GB", "1e-7", "TEACHER_TOP_LOGITS", "1")


def test_the_limit_is_of_all_tables_of_a_folder(tmp_path):  # type: ignore[no-untyped-def]
    sizes = {"vectors.bin": 3 * 2**18, "checksums.bin": 2**18}  # 1 MiB
    limit = 2.5 / 1024
    for number in range(2):
        assert "new" in prepare_folder(tmp_path / f"t{number}", {"number": number}, sizes, limit)
    with pytest.raises(OSError, match=r"0.00 GiB beside 0.00 GiB of other tables do not fit TEACHER_CACHE_GB 0.0024"):
        prepare_folder(tmp_path / "t2", {"number": 2}, sizes, limit)
    assert prepare_folder(tmp_path / "t1", {"number": 1}, sizes, limit) == "found"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t0", "t1"]


def test_what_a_killed_process_was_making_is_removed_after_a_day(tmp_path):  # type: ignore[no-untyped-def]
    for name, days in (("old", 2), ("young", 0)):
        folder = tmp_path / f"{PREFIX}{name}"
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "vectors.bin").write_bytes(b"0" * 4000)
        os.utime(folder, (time.time() - days * 86400,) * 2)
    sizes = {"vectors.bin": 4000, "checksums.bin": 400}
    prepare_folder(tmp_path / "table", {}, sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}young", "table"]
    with pytest.raises(OSError, match="do not fit"):  # what is in the making counts
        prepare_folder(tmp_path / "next", {"next": 1}, sizes, 9000 / 2**30)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["DATASET.AUGMENT", "resized_crop"], "resized_crop makes countless forms of an image; DATASET.VIEWS 10 would"),
        (["DATASET.AUGMENT", "resized_crop", "DATASET.MIXUP", "0.2"], "DATASET.MIXUP 0.2 makes countless forms of an"),
        ([*CROPS, "DISTILLER.TYPE", "AT"], "saves no time"),
        ([*CROPS, "TEACHER_CACHE", "off"], "saves no time"),
    ],
)
def test_a_line_says_why_there_is_none(settings, overrides, reason):  # type: ignore[no-untyped-def]  # noqa: F811
    assert reason in opened(settings, "TEACHER_CACHE", "memory", *overrides)[0]


BAD = [
    ("DATASET.VIEWS -1", "DATASET.VIEWS is -1; expected the views of an image, a whole number from 0 to 1000"),
    ("DATASET.VIEWS 1001", "DATASET.VIEWS is 1001; expected the views"),
    ("DATASET.VIEWS many", "DATASET.VIEWS"),
    ("DATASET.VIEWS 2.5", "DATASET.VIEWS"),
    ("DATASET.VIEWS_SEED -3", "DATASET.VIEWS_SEED is -3; expected"),
    ("DATASET.VIEWS_SEED x", "DATASET.VIEWS_SEED is 'x'; expected"),
    (
        "DATASET.VIEWS 5 DATASET.MIXUP 0.2",
        "expected 0 with DATASET.MIXUP 0.2: images are mixed differently in each step",
    ),
    ("DATASET.VIEWS 5 DATASET.CUTMIX 1.0", "expected 0 with DATASET.CUTMIX 1.0"),
    ("DATASET.VIEWS 5 DATASET.AUGMENT none", "AUGMENT none and no random changes, because all views"),
    ("DATASET.VIEWS 5 DATASET.PADDING 0 DATASET.FLIP False", "expected 0 with DATASET.AUGMENT pad_crop and no random"),
    ("TEACHER_CACHE_GB -1", "TEACHER_CACHE_GB is -1.0; expected a number of GiB"),
    ("TEACHER_CACHE_GB nan", "TEACHER_CACHE_GB"),
    ("TEACHER_TOP_LOGITS -5 TEACHER_CACHE memory", "TEACHER_TOP_LOGITS is -5; expected a number of logits"),
    ("TEACHER_TOP_LOGITS 5", "TEACHER_TOP_LOGITS is 5; expected 0 with TEACHER_CACHE off"),
    (
        "TEACHER_TOP_LOGITS 5 TEACHER_CACHE memory DISTILLER.TYPE RLD DISTILLER.TEACHER resnet14",
        "TEACHER_TOP_LOGITS is 5; expected 0 with RLD, which compares the logit of each class with the label's",
    ),
    (
        "TEACHER_TOP_LOGITS 5 TEACHER_CACHE memory DISTILLER.TYPE KD KD.LOGIT_STAND True DISTILLER.TEACHER resnet14",
        "expected 0 with KD.LOGIT_STAND, which needs the mean of all logits",
    ),
    ("TEACHER_CACHE_VIEWS 5", "unknown config key"),
]


@pytest.mark.parametrize(("words", "reason"), BAD)
def test_bad_settings(command, tmp_path, words, reason):  # type: ignore[no-untyped-def]
    (tmp_path / "x.yaml").write_text("DATASET: {TYPE: fashion_demo}\nDISTILLER: {STUDENT: resnet8}\n")
    status, out, err = command("train", "--cfg", "x.yaml", *words.split())
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert reason in err
    assert not (tmp_path / "output").exists()
