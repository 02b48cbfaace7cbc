"""What is wrong with a configuration or with data: a line for each fault, status 2, and nothing is changed on disk."""

import json
import os
import re
import shutil

import pytest
import torch
from PIL import Image

from tests.dataset.loading.test_image_check import FAULTY

# overrides, and what each line of stderr begins with; first single faults, then several at once
CONFIGURATIONS = [
    ("SOLVER.LRR 1", ["unknown config key SOLVER.LRR in the command line; did you mean SOLVER.LR"]),
    ("SOLVR.LR 1", ["unknown config key SOLVR in the command line; did you mean SOLVER"]),
    (
        "SOLVER.BATCH_SIZE 1",
        ["SOLVER.BATCH_SIZE is 1; expected at least 2, because BatchNorm cannot train on one image"],
    ),
    ("SOLVER.BATCH_SIZE 8.5", ["SOLVER.BATCH_SIZE in the command line is 8.5; expected a whole number"]),
    ("SOLVER.EPOCHS 0", ["SOLVER.EPOCHS is 0; expected at least 1"]),
    ("SOLVER.LR 0", ["SOLVER.LR is 0.0; expected a number above 0"]),
    ("SOLVER.LR .nan", ["SOLVER.LR is nan; expected a number above 0"]),
    ("SOLVER.LR fast", ["SOLVER.LR in the command line is 'fast'; expected a number"]),
    ("SOLVER.LR", ["override 'SOLVER.LR' has no value; expected KEY VALUE pairs"]),
    ("SOLVER 3", ["SOLVER in the command line is a section, given 3; set its keys"]),
    ("SOLVER.SCHEDULE stairs", ["SOLVER.SCHEDULE is 'stairs'; expected one of step, cosine, linear"]),
    ("SOLVER.SCHEDULE step", ["SOLVER.LR_DECAY_STAGES is [150, 180, 210]; expected none above SOLVER.EPOCHS, 1: give"]),
    ("SOLVER.LR_DECAY_STAGES [3,2]", ["SOLVER.LR_DECAY_STAGES is [3, 2]; expected epochs above 0 in rising order"]),
    ("SOLVER.LR_DECAY_STAGES 3", ["SOLVER.LR_DECAY_STAGES in the command line is 3; expected a list"]),
    ("SOLVER.LR_DECAY_RATE 2", ["SOLVER.LR_DECAY_RATE is 2.0; expected a number above 0 and up to 1"]),
    ("SOLVER.WARMUP_EPOCHS 2", ["SOLVER.WARMUP_EPOCHS is 2.0; expected a number from 0 to SOLVER.EPOCHS"]),
    ("SOLVER.WEIGHT_DECAY -1", ["SOLVER.WEIGHT_DECAY is -1.0; expected a number from 0 to 1e+18"]),
    ("SOLVER.MOMENTUM 1", ["SOLVER.MOMENTUM is 1.0; expected a number from 0 to below 1"]),
    ("SOLVER.TYPE Adamm", ["SOLVER.TYPE is 'Adamm'; "]),
    ("SOLVER.AMP half", ["SOLVER.AMP is 'half'; expected one of off, bf16, fp16, auto"]),
    ("SOLVER.TRAINER bass", ["unknown trainer 'bass'; did you mean base"]),
    ("LOG.WANDB perhaps", ["LOG.WANDB in the command line is 'perhaps'; expected a boolean"]),
    ("EXPERIMENT.SEED -1", ["EXPERIMENT.SEED is -1; expected a whole number from 0"]),
    ("EXPERIMENT.REFERENCE [gone.json]", ["EXPERIMENT.REFERENCE gone.json is not the summary.json of a run"]),
    ("PLUGINS gone.py", ["PLUGINS: no file at gone.py"]),
    ("DATASET.TYPE cifar", ["unknown data set 'cifar'; did you mean cifar10"]),
    ("DATASET.INPUT_SIZE small", ["DATASET.INPUT_SIZE is 'small'; expected the side in pixels, a whole number"]),
    ("DATASET.TRAIN_FRACTION 1.5", ["DATASET.TRAIN_FRACTION is 1.5; expected a number above 0 and up to 1"]),
    ("DATASET.AUGMENT crop", ["DATASET.AUGMENT is 'crop'; did you mean pad_crop"]),
    ("DATASET.PADDING -1", ["DATASET.PADDING is -1; expected 0 or more"]),
    ("DATASET.NUM_WORKERS -1", ["DATASET.NUM_WORKERS is -1; expected a whole number from 0 to 512"]),
    ("DATASET.NUM_WORKERS 100000", ["DATASET.NUM_WORKERS is 100000; expected a whole number from 0 to 512"]),
    ("DATASET.PADDING 16", ["DATASET.PADDING is 16; expected less than the image's side, 16 pixels"]),
    ("DATASET.PADDING 1" + "0" * 24, ["DATASET.PADDING is 1000000000000000000000000; expected at most 1e+18"]),
    (
        "DATASET.INPUT_SIZE 1000000",
        ["DATASET.INPUT_SIZE is 1000000; expected the side in pixels, a whole number from 1"],
    ),
    ("DATASET.TEST.BATCH_SIZE 10000000", ["DATASET.TEST.BATCH_SIZE is 10000000; expected a whole number from 1 to"]),
    ("DATASET.MEAN '000'", ["DATASET.MEAN is '000'; give three numbers"]),
    ("DATASET.STD !!set{0.1,0.2,0.3}", ["DATASET.STD is"]),
    ("DATASET.ROOT ~nobody_of_that_name", ["'~nobody_of_that_name' cannot be a path"]),
    ("DATASET.ROOT " + "a" * 5000, ["'aaaa"]),
    ("SOLVER.EPOCHS 1" + "0" * 18, ["SOLVER.EPOCHS is 1000000000000000000; expected at least 1 and at most 1000000"]),
    ("SOLVER.EPOCHS 1" + "0" * 400, ["SOLVER.EPOCHS is 1000"]),
    ("SOLVER.BATCH_SIZE 1000000000000", ["SOLVER.BATCH_SIZE is 1000000000000; expected at most 1000000 images"]),
    ("SOLVER.LR 1e308", ["SOLVER.LR is 1e+308; expected a number above 0, at most 1e+18"]),
    ("SOLVER.LR 2020-13-45", ["SOLVER.LR in the command line is '2020-13-45'; expected a number"]),
    ("SOLVER.LR " + "1" * 5000, ["SOLVER.LR is inf; expected a number above 0"]),
    ("SOLVER.WEIGHT_DECAY 1e308", ["SOLVER.WEIGHT_DECAY is 1e+308; expected a number from 0 to 1e+18"]),
    ("KD.TEMPERATURE 1e308", ["KD.TEMPERATURE is 1e+308; expected at most 1e+18"]),
    ("DISTILLER.TYPE VID VID.INIT_PRED_VAR 1000", ["VID.INIT_PRED_VAR is 1000.0 and VID.EPS 1e-05; expected"]),
    ("DISTILLER.TYPE OFD OFD.CONNECTOR.KERNEL_SIZE 100000000000", ["out of memory (Storage size"]),
    ("EXPERIMENT.NAME ../x", ["EXPERIMENT.NAME (or PROJECT/TAG) is '../x'; expected a folder below LOG.PREFIX"]),
    ("EXPERIMENT.NAME /x", ["EXPERIMENT.NAME (or PROJECT/TAG) is '/x'; expected a folder below LOG.PREFIX"]),
    ("EXPERIMENT.NAME .", ["EXPERIMENT.NAME (or PROJECT/TAG) is '.'; expected a folder below LOG.PREFIX"]),
    ("EXPERIMENT.NAME " + "a/" * 2000, ["EXPERIMENT.NAME (or PROJECT/TAG) is 'a/a/"]),
    ("EXPERIMENT.NAME a\0b", ["EXPERIMENT.NAME or LOG.PREFIX: 'output/a\\x00b' cannot be a path (embedded null byte)"]),
    ("EXPERIMENT.NAME \udcff", ["EXPERIMENT.NAME or LOG.PREFIX is not valid UTF-8"]),
    ("LOG.PREFIX " + "a" * 300, ["EXPERIMENT.NAME or LOG.PREFIX: 'aaaa"]),
    (
        "LOG.PREFIX ~nobody_of_that_name",
        ["EXPERIMENT.NAME or LOG.PREFIX: '~nobody_of_that_name' cannot"],
    ),
    ("EXPERIMENT.REFERENCE [/dev/zero]", ["EXPERIMENT.REFERENCE /dev/zero is not the summary.json of a run (OSError"]),
    ("X\x1bY 1", ["unknown config key X?Y in the command line; known: EXPERIMENT, DATASET, DISTILLER, "]),
    ("DATASET.TEST.BATCH_SIZE 0", ["DATASET.TEST.BATCH_SIZE is 0; expected a whole number from 1 to 1000000"]),
    ("DATASET.CORRUPT delete", ["DATASET.CORRUPT is 'delete'; known: refuse, skip, unchecked"]),
    ("DATASET.STD [58,57,57]", ["DATASET.STD is [58, 57, 57]; give the values of images scaled to [0, 1]"]),
    ("DATASET.STD None", ["DATASET.MEAN is given alone; give both MEAN and STD, or neither"]),
    (
        "DATASET.IN_MEMORY yes DATASET.AUGMENT resized_crop",
        ["DATASET.IN_MEMORY yes cannot be combined with DATASET.AUGMENT resized_crop"],
    ),
    ("DISTILLER.TYPE KDD", ["unknown distiller 'KDD'; did you mean"]),
    ("DISTILLER.STUDENT resnet9", ["unknown CIFAR model 'resnet9'; did you mean resnet8"]),
    ("DISTILLER.TEACHER_WEIGHTS gone.pth", ["DISTILLER.TEACHER_WEIGHTS: no checkpoint at gone.pth"]),
    ("KD.TEMPERATURE 0", ["KD.TEMPERATURE is 0.0; expected a number above 0"]),
    ("KD.LOSS.CE_WEIGHT -0.1", ["KD.LOSS.CE_WEIGHT is -0.1; expected a weight of 0 or more"]),
    ("KD.LOSS.KD_WEIGHT .inf", ["KD.LOSS.KD_WEIGHT is inf; expected a weight of 0 or more"]),
    ("DISTILLER.TYPE NONE SOLVER.TRAINER dot", ["SOLVER.TRAINER dot needs loss_ce and another loss, this distiller"]),
    ("SOLVER.TRAINER dot SOLVER.DOT.DELTA 0.2", ["SOLVER.DOT.DELTA is 0.2 with SOLVER.MOMENTUM 0.9; expected"]),
    (
        "SOLVER.LR -1 SOLVER.BATCH_SIZE many DATASET.PADING 1 DATASET.PADDING -1 KD.TEMPERATURE 0 DISTILLER.STUDENT r8",
        [
            "SOLVER.BATCH_SIZE in the command line is 'many'",
            "unknown config key DATASET.PADING",
            "unknown CIFAR model 'r8'",
            "SOLVER.LR is -1.0",
            "DATASET.PADDING is -1",
            "KD.TEMPERATURE is 0.0",
        ],
    ),
    (
        "DISTILLER.TYPE SFAKD SFAKD.SIGMA 0 SFAKD.ALIGN both SFAKD.CLASSIFIER student SFAKD.FREQUENCY_BRANCH False"
        " SFAKD.SPATIAL_BRANCH False",
        [
            "SFAKD.SIGMA is 0.0; expected a number above 0",
            "SFAKD.ALIGN is 'both'; expected pooled or map",
            "SFAKD.FREQUENCY_BRANCH and SFAKD.SPATIAL_BRANCH are both off",
            "SFAKD.CLASSIFIER student trains the student's own classifier by cross-entropy or KD's loss, but",
        ],
    ),
]


def emptied(*folders):
    return lambda images: [path.unlink() for folder in folders for path in (images / folder).iterdir()]


def replaced(content, *files):
    return lambda images: [(images / file).write_bytes(content) for file in files]


BAD = FAULTY["truncated png"]
# what is done to the images, overrides, and the line
DATA = {
    **{kind: (replaced(content, "train/class_1/2.png"), "", r"cannot read the image images/train/class_1/2\.png \(.+\)")
       for kind, content in FAULTY.items()},
    "streamed": (replaced(BAD, "val/class_0/1.png"), "DATASET.IN_MEMORY no", r"cannot read the image .*class_0/1\.png"),
    "by workers": (
        replaced(BAD, "val/class_0/1.png"),
        "DATASET.IN_MEMORY no DATASET.NUM_WORKERS 2",
        r"cannot read the image images/val/class_0/1\.png",
    ),
    "large crops": (
        replaced(BAD, "train/class_0/1.png"),
        "DATASET.AUGMENT resized_crop",
        r"cannot read the image images/train/class_0/1\.png",
    ),
    "five": (
        replaced(BAD, *(f"train/class_2/{n}.png" for n in range(5))),
        "",
        r"cannot read 5 of 36 images: images/train/class_2/0\.png .*; images/.* and 2 more; replace, convert or remove",
    ),
    "a class of which none is left": (
        replaced(BAD, *(f"train/class_2/{n}.png" for n in range(12))),
        "DATASET.CORRUPT skip",
        r"no training image can be read in 1 of the classes, for example images/train/class_2/0\.png",
    ),
    "a link to nowhere": (
        lambda images: (images / "train/class_0/x.png").symlink_to("nowhere"),
        "",
        r"cannot read the image images/train/class_0/x\.png \(.*No such file",
    ),
    "a pipe": (
        lambda images: os.mkfifo(images / "train/class_0/x.png"),
        "",
        r"cannot read the image images/train/class_0/x\.png \(not a regular file\)",
    ),
    "a name of two lines": (
        lambda images: shutil.copytree(images / "val/class_1", images / "val/a\nb"),
        "",
        "the classes of images differ: val has a b, which train lacks",
    ),
    "none that can be measured": (
        lambda images: [path.write_bytes(b"") for path in images.rglob("*.png")],
        "DATASET.CORRUPT skip DATASET.IN_MEMORY no DATASET.MEAN None DATASET.STD None",
        "cannot read 36 of 36 images",
    ),
    "an empty class": (emptied("train/class_1"), "", "the class folder images/train/class_1 holds no image; add some"),
    "two": (emptied("train/class_1", "train/class_2"), "", "the class folders class_1, class_2 of .*/train hold no"),
    "no class": (
        lambda images: None,
        "DATASET.ROOT images/val",
        r"images/val/val is missing: images/val seems to be a part of a data set, set DATASET.ROOT to images; expected",
    ),
    "no folder": (lambda images: None, "DATASET.ROOT gone", "DATASET.ROOT gone is not a folder; expected"),
    "another class in val": (
        lambda images: shutil.copytree(images / "val/class_1", images / "val/dog"),
        "",
        "the classes of images differ: val has dog, which train lacks",
    ),
    "a class less in val": (
        lambda images: (images / "val/class_1").rename(images.parent / "away"),
        "",
        "the classes of images differ: val lacks class_1, which train has",
    ),
}  # fmt: skip


def files(place):
    return {p: p.lstat().st_mtime_ns for p in place.rglob("*") if "cache" not in p.parts}


def refused(command, place, overrides):
    """Run a training that must be refused; return the lines of stderr."""
    before = files(place)
    status, out, err = command("train", "--cfg", "run.yaml", *overrides.split())
    assert status == 2, (out, err)
    assert "Traceback" not in out + err
    assert files(place) == before, "nothing is written"
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line[len("error: ") :] for line in lines]


@pytest.mark.parametrize(("overrides", "expected"), CONFIGURATIONS, ids=[f"{c!a:.40}" for c, _ in CONFIGURATIONS])
def test_configurations(command, place, overrides, expected):
    lines = refused(command, place, overrides)
    assert len(lines) == len(expected), lines
    for line, beginning in zip(lines, expected):
        assert line.startswith(beginning)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", list(DATA))
def test_data(command, place, kind):
    damage, overrides, message = DATA[kind]
    damage(place / "images")
    (line,) = refused(command, place, overrides)
    assert re.match(message, line), line


def test_what_is_left_out_is_said_and_the_run_goes_on(command, place):
    replaced(BAD, "train/class_0/1.png", "train/class_1/1.png", "val/class_0/2.png")(place / "images")
    Image.new("L", (16, 16)).save(place / "images/train/class_0/0.png")
    for memory in ("yes", "no"):
        overrides = ["DATASET.CORRUPT", "skip", "DATASET.IN_MEMORY", memory, "EXPERIMENT.NAME", f"run_{memory}"]
        status, out, err = command("train", "--cfg", "run.yaml", *overrides)
        assert (status, err) == (0, "")
        assert "left out 2 of 36 training images that cannot be read: images/train/class_0/1.png (" in out
        assert "left out 1 of 18 validation images that cannot be read: images/val/class_0/2.png (" in out
        assert "1 of 36 training images are converted to RGB (1 L)" in out
        assert "(34 training and 17 validation images, 3 classes, 16 px)" in out
    rows = [json.loads((place / f"output/run_{m}/summary.json").read_text()) for m in ("yes", "no")]
    assert rows[0]["last"] == rows[1]["last"]


JUNK = [None, -1, "x", [[1]], {"DATASET": {"TEST": 3}}]


def test_a_checkpoint_whose_description_is_damaged(command, place):
    status, _, err = command("train", "--cfg", "run.yaml", "DISTILLER.TYPE", "SFAKD", "EXPERIMENT.NAME", "s")
    assert (status, err) == (0, "")
    good = torch.load("output/s/student_best.pth", weights_only=True)
    tried = 0
    for key in good:
        for junk in JUNK:
            torch.save({**good, key: junk}, "junk.pth")
            status, _, err = command("eval", "-m", "resnet8", "-c", "junk.pth", "DATASET.ROOT", "images")
            assert status in (0, 2), (key, junk)
            assert status == 0 or (err.startswith("error: ") and "Traceback" not in err), (key, junk, err)
            tried += status == 2
    assert tried > 40
    for key, junk in [(k, j) for k in good["head"]["options"] for j in JUNK[:4]]:
        head = {**good["head"], "options": {**good["head"]["options"], key: junk}}
        torch.save({**good, "head": head}, "junk.pth")
        status, _, err = command("eval", "-m", "resnet8", "-c", "junk.pth", "DATASET.ROOT", "images")
        assert status == 0 or err.startswith("error: "), (key, junk)
        assert "Traceback" not in err


def test_enough_is_tried():
    assert len(CONFIGURATIONS) + len(DATA) > 60
