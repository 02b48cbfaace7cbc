"""The README's first command, on a part of its images, and the files that it stands on."""

import json
import re

import pytest

from tests.conftest import REPO


@pytest.fixture
def clone(monkeypatch):
    """Read data and checkpoints from the clone, write to the test's own folder."""
    monkeypatch.delenv("MDISTILLER_DATA")
    monkeypatch.delenv("MDISTILLER_CKPTS")


def test_the_demos_teacher_is_as_good_as_the_readme_says(command, clone):
    status, out, _ = command("eval", "-m", "wrn_16_2", "-c", REPO / "download_ckpts/demo/wrn_16_2.pth")
    assert status == 0
    measured, recorded = (float(re.search(rf"{name}\s+top-1 ([\d.]+)", out)[1]) for name in ("deployed", "recorded"))
    assert measured == pytest.approx(recorded, abs=0.15)  # other processors round otherwise
    assert f"| teacher wrn_16_2 | {recorded:.2f} |" in (REPO / "README.md").read_text(encoding="utf-8")


def test_the_demo_runs_and_ends_with_its_table(command, clone):
    arguments = ["DATASET.TRAIN_FRACTION", "0.05", "SOLVER.EPOCHS", "2"]
    status, out, err = command("train", "--cfg", "configs/demo/sfakd.yaml", *arguments)
    assert (status, err) == (0, "")
    reference = json.loads((REPO / "configs/demo/vanilla_summary.json").read_text(encoding="utf-8"))
    assert re.search(r"^teacher wrn_16_2 +92\.\d\d", out, flags=re.M)
    assert re.search(r"^student resnet8, SFAKD +\d", out, flags=re.M)
    assert re.search(rf"^student resnet8, alone +{reference['last']['deployed_top1']:.2f}", out, flags=re.M)


def test_the_reference_is_a_run_of_its_config():
    reference = json.loads((REPO / "configs/demo/vanilla_summary.json").read_text(encoding="utf-8"))
    assert (reference["method"], reference["student"], reference["epochs"]) == ("NONE", "resnet8", 10)
    assert (reference["train_images"], reference["val_images"], reference["seed"]) == (6000, 2000, 0)
