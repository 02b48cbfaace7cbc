"""A run goes on with the data and the teacher that it was started with, wherever they lie, and with no others."""

import hashlib
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.dataset import FileSplit
from mdistiller.distillers import distiller_dict
from mdistiller.engine import checkpoint
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.speed.teacher_cache import weights_digest
from mdistiller.models import build_model
from tests.conftest import make_image_folder

YAML = """
DATASET: {TYPE: imagefolder, ROOT: images, INPUT_SIZE: 16, NUM_WORKERS: 0}
DISTILLER: {TYPE: KD, TEACHER: resnet14, STUDENT: resnet8, TEACHER_WEIGHTS: teacher.pth}
SOLVER: {EPOCHS: 1, BATCH_SIZE: 8, SCHEDULE: linear, AMP: off}
LOG: {WANDB: False}
EXPERIMENT: {NAME: run}
"""
REMEDY = (
    "; give those that the run was started with, which config.yaml beside it names, or start a new run"
    " (EXPERIMENT.NAME)"
)


def write_teacher(path, seed):
    torch.manual_seed(seed)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, a teacher, and a run of one epoch, which is done."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MDISTILLER_CACHE", str(place / "cache"))
        make_image_folder(place / "images")
        write_teacher("teacher.pth", seed=7)
        (place / "run.yaml").write_text(YAML)
        build_trainer(load_cfg("run.yaml")).train()
    return place


@pytest.fixture
def place(trained, tmp_path):
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def refusal(command, place):
    """Resume, which must leave every file as it is; return the part of the message in brackets."""

    def files():
        return {path: path.read_bytes() for path in (place / "output").rglob("*") if path.is_file()}

    def resume(*overrides):
        before = files()
        status, _, err = command("train", "--cfg", "run.yaml", "--resume", *overrides)
        assert (status, err.count("\n")) == (2, 1), err
        assert {path: content for path, content in files().items() if path in before} == before
        start = "error: --resume: output/run/latest.pth was trained with other data or another teacher ("
        assert err.startswith(start) and err.endswith(f"){REMEDY}\n"), err
        return err[len(start) : -len(f"){REMEDY}\n")]

    return resume


def rename_class(before, after):
    for split in ("train", "val"):
        os.rename(f"images/{split}/{before}", f"images/{split}/{after}")


def repaint(path):
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def test_what_is_kept(place):
    origin = checkpoint.read_checkpoint(place / "output/run/latest.pth")["origin"]
    assert origin["classes"] == ["class_0", "class_1", "class_2"]
    assert (origin["train_images"], origin["val_images"]) == (36, 18)
    labels = {name: np.repeat(np.arange(3, dtype=np.int64), count) for name, count in (("train", 12), ("val", 6))}
    for name in labels:
        assert origin[f"{name}_labels"] == hashlib.sha256(labels[name].tobytes()).hexdigest()
    pictures = sorted(place.glob("images/val/*/*.png"), key=lambda path: path.parts)
    pixels = np.stack([np.asarray(Image.open(path)) for path in pictures])
    assert origin["val_content"] == f"pixels: {hashlib.sha256(pixels.tobytes()).hexdigest()}"
    torch.manual_seed(7)
    assert origin["teacher"] == weights_digest(build_model("resnet14", 3))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("class_0", "zebra", "class 0 was 'class_0', now 'class_1'"),  # the others' labels move by one
        ("class_2", "zebra", "class 2 was 'class_2', now 'zebra'"),
    ],
)
def test_a_renamed_class(refusal, before, after, expected):
    rename_class(before, after)
    found = refusal().split("; ")
    assert found[0] == expected
    assert len(found) == (3 if before == "class_0" else 1)  # the images then come in another order too


def test_another_number_of_classes(refusal):
    for split in ("train", "val"):
        shutil.copytree(f"images/{split}/class_2", f"images/{split}/class_3")
    # the teacher has three classes; the data are compared before
    write = build_model("resnet14", 4)
    torch.save({"model": write.state_dict()}, "four.pth")
    found = refusal("DISTILLER.TEACHER_WEIGHTS", "four.pth").split("; ")
    assert found[:3] == [
        "the number of classes was 3, now 4",
        "the number of training images was 36, now 48",
        "the number of validation images was 18, now 24",
    ]


@pytest.mark.parametrize(("split", "word", "count"), [("train", "training", 36), ("val", "validation", 18)])
def test_another_set_of_images(refusal, split, word, count):
    os.rename(f"images/{split}/class_0/3.png", "moved.png")
    assert refusal() == f"the number of {word} images was {count}, now {count - 1}"
    shutil.copy("moved.png", f"images/{split}/class_1/0_more.png")
    labels = np.repeat(np.arange(3, dtype=np.int64), [count // 3 - 1, count // 3 + 1, count // 3])
    assert refusal().startswith(f"the digest of the {word} labels was ")
    assert refusal().endswith(f", now {hashlib.sha256(labels.tobytes()).hexdigest()[:12]}")


@pytest.mark.parametrize(("split", "word"), [("train", "training"), ("val", "validation")])
def test_other_images_under_the_same_names(refusal, split, word):
    repaint(f"images/{split}/class_1/2.png")  # mean and std, which are measured, change too: not what the user changed
    kind = "pixels" if split == "val" else "pixels without padding"
    assert refusal().startswith(f"the digest of the {word} images' {kind} was ")


def test_other_weights_of_the_teacher(refusal):
    write_teacher("other.pth", seed=8)
    torch.manual_seed(7)
    before = weights_digest(build_model("resnet14", 3))
    torch.manual_seed(8)
    now = weights_digest(build_model("resnet14", 3))
    found = refusal("DISTILLER.TEACHER_WEIGHTS", "other.pth")
    assert found == f"the digest of the teacher's weights was {before[:12]}, now {now[:12]}"
    os.replace("other.pth", "teacher.pth")
    assert refusal() == found


def test_all_that_differs_is_in_one_line(refusal):
    write_teacher("teacher.pth", seed=8)
    os.remove("images/val/class_0/0.png")
    rename_class("class_2", "class_9")
    assert [part.partition(" was ")[0] for part in refusal().split("; ")] == [
        "class 2",
        "the number of validation images",
        "the digest of the teacher's weights",
    ]


def test_a_moved_data_folder_and_a_moved_teacher_are_fine(command, place):
    shutil.copytree("images", "elsewhere/pictures", copy_function=shutil.copyfile)  # with dates of its own
    shutil.rmtree("images")
    os.rename("teacher.pth", "elsewhere/t.pth")
    where = ["DATASET.ROOT", "elsewhere/pictures", "DISTILLER.TEACHER_WEIGHTS", "elsewhere/t.pth"]
    status, out, err = command("train", "--cfg", "run.yaml", "--resume", "SOLVER.EPOCHS", "2", *where)
    assert (status, err) == (0, "")
    assert "resumed after epoch 1 of 2" in out


def test_images_that_are_no_longer_held_in_memory_are_fine(command, place):
    status, out, err = command("train", "--cfg", "run.yaml", "--resume", "DATASET.IN_MEMORY", "no")
    assert (status, err) == (0, "")
    assert "resumed after epoch 1 of 1" in out


def test_a_fingerprint_of_files_is_of_names_and_sizes(tmp_path):
    def split(folder, names=("a", "b")):
        return FileSplit([folder / "class" / name for name in names], [0] * len(names))

    one, other = tmp_path / "one", tmp_path / "other"
    (one / "class").mkdir(parents=True)
    for name, size in (("a", 3), ("b", 5), ("c", 5)):
        (one / "class" / name).write_bytes(b"x" * size)
    shutil.copytree(one, other, copy_function=shutil.copyfile)
    os.utime(other / "class/a", (1, 1))
    kind, before = split(one).fingerprint()
    assert kind == "file names and sizes"
    assert before == hashlib.sha256(b"a 3\0b 5\0").hexdigest()
    assert split(other).fingerprint() == (kind, before)
    assert split(one, ("b", "a")).fingerprint()[1] != before
    assert split(one, ("a", "c")).fingerprint()[1] != before
    (other / "class/b").write_bytes(b"x")
    assert split(other).fingerprint()[1] != before
    os.remove(other / "class/b")
    assert split(other).fingerprint()[1] == hashlib.sha256(b"a 3\0b -1\0").hexdigest()


def test_extra_state_of_a_module_is_no_weight():
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return object()

    torch.manual_seed(0)
    one, other = Extra(2, 3), Extra(2, 3)
    other.load_state_dict(one.state_dict(), strict=False)
    assert weights_digest(one) == weights_digest(other)
    torch.nn.init.zeros_(other.bias)
    assert weights_digest(one) != weights_digest(other)


def test_no_method_changes_its_teacher_before_it_is_looked_at(place):
    """What a run has at its start and at its resume are the weights in the file."""
    torch.manual_seed(7)
    before = weights_digest(build_model("resnet14", 3))
    for method in ("OFD", "CRD", "REVIEWKD", "SFAKD"):
        assert distiller_dict[method].needs_teacher
        trainer = build_trainer(load_cfg("run.yaml", ["DISTILLER.TYPE", method, "CRD.NCE.K", "16"]))
        assert trainer.origin["teacher"] == before, method
