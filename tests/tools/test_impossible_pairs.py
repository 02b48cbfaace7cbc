"""What a method cannot do becomes one line, with status 2, before any training: no output folder is left."""

import pytest
import torch

from mdistiller.models import build_model
from tests.conftest import make_image_folder

IMPOSSIBLE = [
    # pairs
    ("SIMKD", ["DISTILLER.TEACHER", "MobileNetV2"], "a teacher's final map with the 1280 channels .* use SFAKD"),
    ("SIMKD", ["DISTILLER.TEACHER", "ShuffleV2"], "a teacher's final map with the 1024 channels .* use SFAKD"),
    ("SFAKD", ["DISTILLER.TEACHER", "MobileNetV2", "SFAKD.ALIGN", "map"], "1280 channels .* use SFAKD.ALIGN pooled"),
    ("FITNET", ["DISTILLER.TEACHER", "vgg8", "FITNET.HINT_LAYER", "4"], "expected 0 to 3: the student gives 4 maps"),
    ("KDSVD", ["KDSVD.K", "17"], "KDSVD.K is 17; expected 1 to 16, the least rank of this pair's stages"),
    ("CRD", ["CRD.FEAT.STUDENT_DIM", "5"], "CRD.FEAT.STUDENT_DIM is 5, but the pooled feature has 64 channels"),
    ("REVIEWKD", ["REVIEWKD.SHAPES", "[1, 4, 8]"], "REVIEWKD.SHAPES is .1, 4, 8., but the student's last 3 maps"),
    ("REVIEWKD", ["REVIEWKD.OUT_CHANNELS", "[9, 9]"], "REVIEWKD.OUT_CHANNELS is .9, 9., but the teacher's last 2 maps"),
    # update rules
    ("NONE", ["SOLVER.TRAINER", "dot"], "dot needs loss_ce and another loss, this distiller gives loss_ce; use SOLVER"),
    ("SFAKD", ["SOLVER.TRAINER", "dot"], "needs loss_ce .*, this distiller gives loss_feat, loss_probe;"),
    ("SIMKD", ["SOLVER.TRAINER", "crd_dot"], "dot needs loss_ce and another loss, this distiller gives loss_feat"),
    ("KD", ["SOLVER.TRAINER", "dot", "SOLVER.DOT.DELTA", "0.2"], "SOLVER.DOT.DELTA is 0.2 with SOLVER.MOMENTUM 0.9"),
    # options
    ("AT", ["AT.P", "0"], "AT.P is 0.0; expected 1 or more"),
    ("CAT_KD", ["CAT_KD.LOSS.CAM_RESOLUTION", "0"], "CAT_KD.LOSS.CAM_RESOLUTION is 0; expected a number above 0"),
    ("CRD", ["CRD.MODE", "exactly"], "CRD.MODE is 'exactly'; expected exact or relax"),
    ("CTKD", ["CTKD.LOOPS", "0"], "CTKD.LOOPS is 0.0; expected a number above 0"),
    ("DIST", ["DIST.TAU", "-1"], "DIST.TAU is -1.0; expected a number above 0"),
    ("DKD", ["DKD.T", "0"], "DKD.T is 0.0; expected a number above 0"),
    ("FITNET", ["FITNET.INPUT_SIZE", "[32]"], "FITNET.INPUT_SIZE is .32.; expected .height, width. in pixels"),
    ("KD", ["KD.TEMPERATURE", "0"], "KD.TEMPERATURE is 0.0; expected a number above 0"),
    ("MLKD", ["MLKD.TEMPERATURE", "0"], "MLKD.TEMPERATURE is 0.0; expected a number above 0"),
    ("NST", ["NST.LOSS.WEIGHT", "1"], "unknown config key NST.LOSS.WEIGHT in the command line; did you mean"),
    ("OFD", ["OFD.CONNECTOR.KERNEL_SIZE", "0"], "OFD.CONNECTOR.KERNEL_SIZE is 0; expected 1 pixel or more"),
    ("PKT", ["PKT.LOSS.FEAT_WEIGHT", "much"], "PKT.LOSS.FEAT_WEIGHT in the command line is 'much'; expected a number"),
    ("RKD", ["RKD.PDIST.EPSILON", "0"], "RKD.PDIST.EPSILON is 0.0; expected a number above 0"),
    ("RLD", ["RLD.TEMPERATURE", "0"], "RLD.TEMPERATURE is 0.0; expected a number above 0"),
    ("REVIEWKD", ["REVIEWKD.MAX_MID_CHANNEL", "0"], "REVIEWKD.MAX_MID_CHANNEL is 0; expected 1 or more"),
    ("SFAKD", ["SFAKD.CLASSIFIER", "student"], "SFAKD.CLASSIFIER student .* but SFAKD.CE_WEIGHT is 0, and so is"),
    ("SFAKD", ["SFAKD.MASK.TYPE", "hard", "SFAKD.SIGMA", "9"], "cuts all 8×8 frequencies; set it lower"),
    ("SIMKD", ["SIMKD.FACTOR", "65"], "SIMKD.FACTOR is 65; expected 1 to 64, the teacher's channels"),
    ("SP", ["SP.LOSS", "3"], "SP.LOSS in the command line is a section, given 3"),
    ("VID", ["VID.INIT_PRED_VAR", "0"], "VID.INIT_PRED_VAR is 0.0 and VID.EPS 1e-05; expected"),
    ("WTTM", ["WTTM.TEMPERATURE", "0"], "WTTM.TEMPERATURE is 0.0; expected a number above 0"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a configuration, and a checkpoint for each teacher."""
    root = tmp_path_factory.mktemp("pairs")
    images = make_image_folder(root / "images", size=32)
    for name in ("resnet14", "vgg8", "MobileNetV2", "ShuffleV2"):
        torch.save({"model": build_model(name, 3).state_dict()}, root / f"{name}.pth")
    (root / "pair.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{images}', INPUT_SIZE: 32, NUM_WORKERS: 0, MEAN: [0.4, 0.4, 0.4],"
        " STD: [0.2, 0.2, 0.2]}\nDISTILLER: {TEACHER: resnet14, STUDENT: resnet8}\n"
        "SOLVER: {EPOCHS: 1, BATCH_SIZE: 8, LR_DECAY_STAGES: []}\n"
    )
    return root


@pytest.mark.parametrize(("method", "overrides", "message"), IMPOSSIBLE)
def test_one_line_and_no_folder(command, folder, tmp_path, method, overrides, message):
    teacher = dict(zip(overrides[::2], overrides[1::2])).get("DISTILLER.TEACHER", "resnet14")
    weights = ["DISTILLER.TEACHER_WEIGHTS", folder / f"{teacher}.pth"]
    arguments = ["--cfg", folder / "pair.yaml", "DISTILLER.TYPE", method, *weights, *overrides]
    status, out, err = command("train", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)
    assert not list(tmp_path.rglob("output*"))


def test_what_is_impossible_costs_no_earlier_run(command, folder, tmp_path):
    arguments = ["--cfg", folder / "pair.yaml", "DISTILLER.TYPE", "NONE", "LOG.WANDB", "False"]
    assert command("train", *arguments)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("*")}
    assert command("train", *arguments, "--overwrite", "SOLVER.TRAINER", "dot")[0] == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("*")} == before


def test_every_method_is_tried():
    from mdistiller.distillers import distiller_dict

    assert {method for method, _, _ in IMPOSSIBLE} == set(distiller_dict)
