"""A run without a validation folder: trained with `DATASET.VAL_FRACTION`, evaluated on the very same images."""

import re
import shutil


def test_evaluation_takes_the_images_that_training_held_out(place, command):
    shutil.rmtree(place / "images" / "val")
    part = "DATASET.VAL_FRACTION 0.25: 9 of the 36 images in {}images/train are for validation, the others for training"
    status, _, err = command("train", "--cfg", "run.yaml", "EXPERIMENT.NAME", "run")
    assert status == 2 and err.count("\n") == 1 and "images/val is missing; expected" in err
    assert err.endswith("or set DATASET.VAL_FRACTION 0.1 to validate on a tenth of train/\n")

    arguments = ("EXPERIMENT.NAME", "run", "EXPERIMENT.SEED", "5", "DATASET.VAL_FRACTION", "0.25")
    status, out, err = command("train", "--cfg", "run.yaml", *arguments)
    assert status == 0 and part.format("") in out, err

    checkpoint = place / "output" / "run" / "student_latest.pth"
    status, out, err = command("eval", "-m", "resnet8", "-c", checkpoint)
    assert status == 0 and part.format(f"{place}/") in out, err
    assert "9 validation images" in out
    deployed, recorded = (re.search(rf"{word} +top-1 ([\d.]+)", out).group(1) for word in ("deployed", "recorded"))
    assert deployed == recorded

    (place / "images" / "val").mkdir()
    status, _, err = command("eval", "-m", "resnet8", "-c", checkpoint)
    assert status == 2 and err.count("\n") == 1
    assert f"which takes validation images out of the training images, but {place}/images has" in err
