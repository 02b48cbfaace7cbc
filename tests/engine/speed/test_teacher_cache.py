"""The teacher cache is exact, is filled once, stays on the disk, and is not used if it does not apply."""

import json
import multiprocessing
import shutil
import sys

import pytest
import torch
from torch import nn

from mdistiller.distillers import distiller_dict
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.speed.fast_networks import FastNetworks
from mdistiller.engine.speed.precision import Precision
from mdistiller.engine.speed.table_folder import prepare_folder
from mdistiller.engine.speed.teacher_cache import CachedTeacher, open_cache
from mdistiller.engine.speed.vector_table import FileTable, MemoryTable
from mdistiller.engine.validate import setting_errors
from mdistiller.errors import UserError
from mdistiller.models import build_model

FLOAT32 = Precision("cpu", None)
CPU = torch.device("cpu")


@pytest.fixture
def settings(image_folder):
    """A function(method, *overrides) -> the config of a pair on 36 images, with the teacher in teacher.pth."""
    torch.manual_seed(1)
    torch.save({"model": build_model("resnet14", 3, "imagefolder", 16).state_dict()}, "teacher.pth")

    def make(method, *overrides, name="run"):
        return load_cfg(
            None,
            [
                *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(image_folder), "DATASET.INPUT_SIZE", "16"),
                *("DATASET.NUM_WORKERS", "0", "DATASET.PADDING", "1", "DISTILLER.TYPE", method),
                *("DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER", "resnet14"),
                *("DISTILLER.TEACHER_WEIGHTS", "teacher.pth", "EXPERIMENT.NAME", name, "SOLVER.AMP", "off"),
                *("SOLVER.EPOCHS", "3", "SOLVER.BATCH_SIZE", "8", "SOLVER.LR", "0.02", "SOLVER.LR_DECAY_STAGES", "[]"),
                *overrides,
            ],
        )

    return make


class Counting(nn.Module):
    """A teacher that counts the images it sees."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher
        self.images = 0

    def forward(self, image):
        self.images += int((image.flatten(1) != 0).any(1).sum())  # without padding
        return self.teacher(image)


def cached(trainer, say=lambda line: None):
    """Return the cached teacher of a trainer, with an empty table in memory, and the counting teacher in it."""
    loader, teacher = trainer.train_loader, Counting(trainer.distiller.teacher.eval())
    widths = {"logits": 3, "pooled": 64}
    table = MemoryTable(loader.num_images * loader.num_variants, 67, torch.float32, CPU)
    return CachedTeacher(teacher, widths, table, FLOAT32, say), teacher


@pytest.mark.parametrize(("in_memory", "flip"), [("yes", "True"), ("no", "True"), ("yes", "False")])
@torch.no_grad()
def test_served_vectors_are_the_teachers_for_every_form(settings, in_memory, flip):
    trainer = build_trainer(settings("KD", "DATASET.IN_MEMORY", in_memory, "DATASET.FLIP", flip))
    loader = trainer.train_loader
    assert loader.num_variants == (18 if flip == "True" else 9)
    cache, teacher = cached(trainer)
    seen = set()
    for epoch in range(1, 60):
        loader.set_epoch(epoch)
        for batch in cache.serve(loader, loader.iterate()):
            logits, feats = cache(batch["image"])
            expected, expected_feats = teacher.teacher(batch["image"])
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(feats["pooled_feat"], expected_feats["pooled_feat"], atol=1e-5, rtol=1e-5)
            seen.update(zip(batch["index"].tolist(), batch["variant"].tolist()))
    assert len(seen) > 0.9 * loader.num_images * loader.num_variants  # nearly all forms were compared
    assert teacher.images == len(seen)  # each was computed once


def test_a_second_pass_over_an_epoch_does_not_run_the_teacher(settings):
    trainer = build_trainer(settings("KD"))
    loader = trainer.train_loader
    cache, teacher = cached(trainer)
    for _ in range(2):
        loader.set_epoch(4)
        indices = [batch["index"] for batch in cache.serve(loader, loader.iterate())]
        assert teacher.images == loader.num_images
    assert torch.equal(torch.cat(indices), loader.plan().order)


def test_a_pass_may_start_in_the_middle(settings):
    trainer = build_trainer(settings("KD"))
    loader = trainer.train_loader
    cache, teacher = cached(trainer)
    for batch in cache.serve(loader, loader.iterate(3), 3):
        torch.testing.assert_close(cache(batch["image"])[0], teacher.teacher(batch["image"])[0], atol=1e-5, rtol=1e-5)
    assert teacher.images == loader.num_images - 3 * loader.batch_size


@torch.no_grad()
def test_vectors_do_not_depend_on_what_was_known_before(settings):
    trainer = build_trainer(settings("KD"))
    loader = trainer.train_loader
    (fresh, _), (used, _) = cached(trainer), cached(trainer)
    for epoch in range(1, 20):
        loader.set_epoch(epoch)
        list(used.serve(loader, loader.iterate()))
    for start in (0, 2):
        for batch in fresh.serve(loader, loader.iterate(start), start):
            logits = fresh(batch["image"])[0]
            keys = batch["index"] * loader.num_variants + batch["variant"]
            assert torch.equal(logits, used.table.read(keys)[:, :3])


def test_other_images_go_through_the_teacher(settings):
    trainer = build_trainer(settings("KD"))
    loader = trainer.train_loader
    cache, teacher = cached(trainer)
    for batch in cache.serve(loader, loader.iterate()):
        mirrored = batch["image"].flip(3)
        torch.testing.assert_close(cache(mirrored), teacher.teacher(mirrored))
    assert torch.equal(cache(batch["image"])[0], teacher.teacher(batch["image"])[0])  # the epoch is over


def losses(trainer):
    trainer.train()
    rows = [json.loads(row) for row in trainer.folder.metrics.read_text().splitlines()]
    return [[row[key] for key in row if key.startswith("loss")] for row in rows]


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        *(("KD", ()), ("SFAKD", ()), ("DKD", ()), ("CTKD", ())),
        # at a higher rate, training would amplify the rounding of the logits
        ("SFAKD", ("SFAKD.KD_WEIGHT", "1", "SOLVER.LR", "0.0001")),
    ],
)
@pytest.mark.parametrize("cache", ["memory", "./folder"])
def test_training_takes_the_same_course(settings, tmp_path, method, overrides, cache):
    plain = losses(build_trainer(settings(method, *overrides, name="plain")))
    other = losses(build_trainer(settings(method, *overrides, "TEACHER_CACHE", cache, name="cached")))
    torch.testing.assert_close(torch.tensor(other), torch.tensor(plain), atol=1e-5, rtol=1e-4)
    assert len(list(tmp_path.glob("folder/resnet14-*/about.json"))) == (cache == "./folder")


def opened(settings, *overrides, method="KD"):
    """Open a cache; return its line for the user, the networks, and the trainer."""
    cfg = settings(method, *overrides)
    trainer, lines = build_trainer(cfg), []
    networks = FastNetworks(trainer.distiller.train(), trainer.train_loader, cfg, trainer.precision, lines.append)
    return lines[-1], networks, trainer


TEACHER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)

    def forward(self, image):
        return self.fc(torch.{}(self.conv(image)).mean((2, 3)))
"""


def fill(networks, trainer, epoch=1):
    """Go through one epoch, as training does."""
    trainer.train_loader.set_epoch(epoch)
    return list(networks.serve(trainer.train_loader.iterate()))


def test_a_folder_serves_later_runs_until_something_is_another(settings, image_folder):
    folder = ("TEACHER_CACHE", "./folder")
    line, networks, trainer = opened(settings, *folder)
    assert "new, 0.0 % known" in line
    fill(networks, trainer)
    line, _, _ = opened(settings, *folder)
    assert f"found, {100 / 18:.1f} % known" in line  # one of 18 forms of each image
    line, _, _ = opened(settings, *folder, method="SFAKD")
    assert "new (1 other table not used; the most similar differs in widths), 0.0 % known" in line
    line, _, _ = opened(settings, *folder, "SOLVER.AMP", "bf16")
    assert "differs in dtype, precision)" in line
    line, _, _ = opened(settings, *folder, "DATASET.PADDING", "2")
    assert "differs in augmentation, images, rows)" in line
    line, _, _ = opened(settings, *folder, "DATASET.FLIP", "False")
    assert "differs in augmentation, rows)" in line
    line, _, _ = opened(settings, *folder, "DATASET.MEAN", "[0.5, 0.5, 0.5]", "DATASET.STD", "[0.2, 0.2, 0.2]")
    assert "differs in mean, std)" in line
    picture = next((image_folder / "train" / "class_1").iterdir())
    shutil.copy(next((image_folder / "train" / "class_0").iterdir()), picture)
    line, _, _ = opened(settings, *folder, "DATASET.MEAN", "[0.5, 0.5, 0.5]", "DATASET.STD", "[0.2, 0.2, 0.2]")
    assert "differs in images)" in line
    torch.manual_seed(2)
    torch.save({"model": build_model("resnet14", 3, "imagefolder", 16).state_dict()}, "teacher.pth")
    line, _, _ = opened(settings, *folder, "DATASET.MEAN", "[0.5, 0.5, 0.5]", "DATASET.STD", "[0.2, 0.2, 0.2]")
    assert "differs in outputs, weights)" in line


def test_a_folder_is_not_used_after_a_change_of_the_teachers_code(settings, tmp_path, monkeypatch):
    """Its weights do not show such a change."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a second source of the same time and size is read again
    own = ["TEACHER_CACHE", "./folder", "DISTILLER.TEACHER", "own.py:Net", "DISTILLER.TEACHER_WEIGHTS", ""]
    for activation, expected in (("relu", "new, 0.0"), ("tanh", "differs in outputs)"), ("tanh", "found, ")):
        (tmp_path / "own.py").write_text(TEACHER.format(activation))
        for name in [name for name in sys.modules if name.startswith("mdistiller_user_own_")]:
            del sys.modules[name]  # as in a new process
        line, networks, trainer = opened(settings, *own)
        assert expected in line
        fill(networks, trainer)


@pytest.mark.parametrize("name", [FileTable.VECTORS, FileTable.CHECKSUMS, "about.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_folder_is_made_again(settings, tmp_path, name, damage):
    _, networks, trainer = opened(settings, "TEACHER_CACHE", "./folder")
    fill(networks, trainer)
    (path,) = (tmp_path / "folder").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-3]) if damage == "truncated" else path.unlink()
    line, networks, trainer = opened(settings, "TEACHER_CACHE", "./folder")
    assert "damaged, made again, 0.0 % known" in line
    fill(networks, trainer)
    assert "found, 5.6 % known" in opened(settings, "TEACHER_CACHE", "./folder")[0]


def test_damaged_vectors_are_computed_again_and_counted(settings, tmp_path):
    _, networks, trainer = opened(settings, "TEACHER_CACHE", "./folder")
    fill(networks, trainer)
    (path,) = (tmp_path / "folder").glob(f"*/{FileTable.VECTORS}")
    content = bytearray(path.read_bytes())
    key = int(trainer.train_loader.plan().order[5] * 18 + trainer.train_loader.plan().variant(1)[5])
    content[key * 3 * 4 + 1] ^= 16
    path.write_bytes(content)
    lines = []
    cfg = settings("KD", "TEACHER_CACHE", "./folder")
    trainer = build_trainer(cfg)
    networks = FastNetworks(trainer.distiller.train(), trainer.train_loader, cfg, trainer.precision, lines.append)
    trainer.train_loader.set_epoch(1)
    with torch.no_grad(), networks.in_place():
        for batch in networks.serve(trainer.train_loader.iterate()):
            served = trainer.distiller.teacher(batch["image"])[0]
            expected = trainer.distiller.teacher.teacher(batch["image"])[0]
            torch.testing.assert_close(served, expected, atol=1e-5, rtol=1e-5)
    assert lines[-1] == "teacher cache: 1 vectors were damaged, and were computed again"


@pytest.mark.parametrize(
    ("method", "overrides", "reason"),
    [
        ("AT", (), "AT reads the teacher's maps; the teacher runs in each step"),
        ("SFAKD", ("SFAKD.ALIGN", "map"), "SFAKD reads the teacher's maps"),
        ("KD", ("DATASET.AUGMENT", "resized_crop"), "resized_crop makes countless forms"),
        ("KD", ("DATASET.AUGMENT", "rotate_flip"), "rotate_flip makes countless forms"),
    ],
)
@pytest.mark.parametrize("choice", ["memory", "./folder"])
def test_what_cannot_be_cached_runs_without(settings, tmp_path, method, overrides, reason, choice):
    line, networks, trainer = opened(settings, "TEACHER_CACHE", choice, *overrides, method=method)
    assert line.startswith("teacher cache: none, ")
    assert reason in line
    assert not (tmp_path / "folder").exists()
    assert not isinstance(networks._teacher, CachedTeacher)
    assert len(fill(networks, trainer)) == len(trainer.train_loader)


@pytest.mark.parametrize(
    ("choice", "free"), [("memory", "teacher_cache.available_memory"), ("./folder", "table_folder.free_disk")]
)
def test_a_table_that_does_not_fit_is_not_made(settings, monkeypatch, choice, free):
    monkeypatch.setattr(f"mdistiller.engine.speed.{free}", lambda place: 1000)
    line, networks, _ = opened(settings, "TEACHER_CACHE", choice)
    assert line.startswith("teacher cache: none, ")
    assert "0.00 GiB" in line
    assert "the teacher runs in each step" in line
    assert not isinstance(networks._teacher, CachedTeacher)


def test_a_folder_that_cannot_be_written_disables_only_the_cache(settings, tmp_path):
    (tmp_path / "file").write_text("")
    line, networks, trainer = opened(settings, "TEACHER_CACHE", "./file")
    assert line.startswith("teacher cache: none, file/resnet14-")
    assert len(fill(networks, trainer)) == len(trainer.train_loader)


def test_low_precision_is_kept_in_half_the_bytes(settings):
    _, networks, trainer = opened(settings, "TEACHER_CACHE", "memory", "SOLVER.AMP", "bf16")
    trainer.train_loader.set_epoch(1)
    with torch.no_grad(), networks.in_place():
        batch = next(networks.serve(trainer.train_loader.iterate()))
        teacher = trainer.distiller.teacher
        with trainer.precision.autocast():
            expected = teacher.teacher(batch["image"])[0]
        assert torch.equal(teacher(batch["image"])[0], expected.half().float())


@pytest.mark.parametrize("choice", ["Memory", "memroy", "none", "disk", ""])
def test_other_spellings_are_refused(settings, choice):
    with pytest.raises(UserError, match="TEACHER_CACHE is .*; expected off, memory, or a folder"):
        build_trainer(settings("KD", "TEACHER_CACHE", choice))


@pytest.mark.parametrize(("given", "meant"), [("False", "off"), ("off", "off"), ("True", "memory"), ("on", "memory")])
def test_yes_and_no_are_understood(settings, given, meant):
    assert meant == settings("KD", "TEACHER_CACHE", given).TEACHER_CACHE


def test_a_folder_that_cannot_be_is_refused_with_the_settings(settings):
    for folder, fault in (
        ("~nobody-of-that-name/cache", "TEACHER_CACHE: '~nobody-of-that-name/cache' cannot be a path"),
        ("${NOT-SET}/cache", "TEACHER_CACHE: '${NOT-SET}/cache' names the environment variable NOT-SET"),
    ):
        assert [line for line in setting_errors(settings("KD", "TEACHER_CACHE", folder)) if line.startswith(fault)]


class Bare(nn.Module):
    """A teacher that returns only logits."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 3)

    def forward(self, image):
        return self.fc(image.flatten(1)), {}


def test_a_teacher_without_pooled_features_serves_a_method_of_logits(settings):
    cfg = settings("KD", "TEACHER_CACHE", "memory")
    trainer = build_trainer(cfg)
    trainer.distiller.teacher = Bare().eval()
    networks = FastNetworks(trainer.distiller.train(), trainer.train_loader, cfg, trainer.precision, lambda line: None)
    with torch.no_grad(), networks.in_place():
        for batch in networks.serve(trainer.train_loader.iterate()):
            served = trainer.distiller.teacher(batch["image"])[0]
            torch.testing.assert_close(served, trainer.distiller.teacher.teacher(batch["image"])[0])


def test_a_subclass_declares_its_own_needs():
    class Mine(distiller_dict["KD"]):
        def forward_train(self, image, target, **kwargs):
            return super().forward_train(image, target, **kwargs)

    class Renamed(distiller_dict["KD"]):
        pass

    assert Mine.teacher_needs == ("logits", "pooled", "maps")
    assert Renamed.teacher_needs == ("logits",)


ABOUT = {"name": "t", "weights": "w"}
SIZES = {FileTable.VECTORS: 4 * 3 * 100, FileTable.CHECKSUMS: 4 * 100}


def fill_a_table(folder, first, barrier):
    """Open a table, write every second row, and read these rows back; runs in a process of its own."""
    barrier.wait()
    prepare_folder(folder, ABOUT, SIZES)
    table = FileTable(folder, 100, 3, torch.float32, CPU)
    keys = torch.arange(first, 100, 2)
    table.write(keys, keys[:, None].float().expand(-1, 3))
    assert not table.missing(keys).any()
    assert torch.equal(table.read(keys)[:, 0], keys.float())


def test_processes_that_start_together_share_a_table(tmp_path):
    context = multiprocessing.get_context("fork")
    for number in range(5):
        barrier = context.Barrier(4)
        folder = tmp_path / f"table-{number}"
        processes = [context.Process(target=fill_a_table, args=(folder, n % 2, barrier)) for n in range(4)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()
        assert [process.exitcode for process in processes] == [0] * 4
        table = FileTable(folder, 100, 3, torch.float32, CPU)
        assert not table.missing(torch.arange(100)).any()
        assert torch.equal(table.read(torch.arange(100))[:, 0], torch.arange(100.0))
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # no temporary folder is left
        shutil.rmtree(folder)


def test_room_on_the_disk_is_taken_at_once(tmp_path):
    prepare_folder(tmp_path / "table", ABOUT, {FileTable.VECTORS: 2**20, FileTable.CHECKSUMS: 4096})
    assert (tmp_path / "table" / FileTable.VECTORS).stat().st_blocks * 512 >= 2**20


def test_the_size_is_printed(settings):
    lines = []
    trainer = build_trainer(settings("KD"))
    teacher, loader = trainer.distiller.teacher, trainer.train_loader
    loader.num_images = 50_000
    loader.num_variants = 162
    open_cache(
        "memory", teacher, {"pooled": 256}, loader, Precision("cpu", torch.bfloat16), {"name": "t"}, lines.append
    )
    assert lines[0].startswith("teacher cache: ")
    assert "50,000 images × 162 forms × 256 values = 3.86 GiB" in lines[0]
