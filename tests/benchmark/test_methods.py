"""The tables that compare methods, with the smallest settings."""

import json
import re

import pytest

from mdistiller.benchmark import methods
from mdistiller.distillers import distiller_dict
from mdistiller.errors import UserError
from tests.conftest import make_image_folder
from tests.plugins.files import FORK, FORK_CFG


def test_every_method_has_a_row():
    rows = methods.choose()
    assert {row.type for row in rows} == set(distiller_dict)
    assert len({row.name for row in rows}) == len(rows)
    assert [row.name for row in methods.choose(["CAT_KD", "LSKD", "KD"])] == ["CAT-KD", "LSKD", "KD"]
    assert methods.describe("CAT_KD").paper == "Class Attention Transfer Based Knowledge Distillation (2023)"
    assert (
        methods.choose(["LSKD"])[0].key == "`KD`, `KD.LOGIT_STAND True`, `KD.TEMPERATURE 2.0`, `KD.LOSS.KD_WEIGHT 9.0`"
    )
    with pytest.raises(UserError, match="unknown method 'FITNETS'; did you mean FitNet"):
        methods.choose(["FITNETS"])


def test_costs(command, tmp_path):
    arguments = ["--methods", "KD,REVIEWKD,DOT,NONE", "--rounds", "1", "--steps", "1", "SOLVER.BATCH_SIZE", "2"]
    status, out, err = command("compare_methods", "table", "--pair", "res56_res20", *arguments, "--json", "costs.json")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "| method | paper | config | needs of the teacher | extra parameters | step time / KD |"
    assert [line.split(" | ")[3] for line in lines[2:6]] == ["logits", "pooled, maps", "logits", "–"]
    assert re.match(r"\| KD \| Distilling .* \(2015\) \| `KD` \| logits \| 0 \| \d+\.\d\d \(", lines[2])
    assert "resnet56 → resnet20, fashion_demo (6000 images), batch 2" in lines[-1]
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert rows[1]["extra"] > 10_000
    assert all(row["spread"][0] <= row["step_time"] <= row["spread"][1] for row in rows)
    make_image_folder(tmp_path / "own", size=32)
    arguments = [
        "--methods",
        "KD",
        "--rounds",
        "4",
        "--steps",
        "1",
        "SOLVER.BATCH_SIZE",
        "2",
        "DATASET.TYPE",
        "imagefolder",
        "DATASET.ROOT",
        "own",
    ]
    status, out, err = command("compare_methods", "table", "--pair", "res56_res20", *arguments)
    assert status == 0, err
    assert "imagefolder (36 images), batch 2" in out
    assert "4 interleaved rounds of 1 steps, median (quartiles)" in out
    status, _, err = command("compare_methods", "table", "--rounds", "0")
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = command("compare_methods", "table", "--epochs", "5")
    assert (status, err.partition(";")[0]) == (2, "error: --epochs is an option of train")
    status, _, err = command("compare_methods", "table", "--pair", "res56_res21")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: unknown pair 'res56_res21'; did you mean res56_res20 or ")


@pytest.mark.usefixtures("registries_as_before")
def test_learning(command, tmp_path):
    (tmp_path / "mine.py").write_text(FORK + FORK_CFG.replace("16, 16", "32, 32"))
    arguments = ["--methods", "HintedKD,SFAKD", "--epochs", "1", "PLUGINS", "mine.py", "DATASET.TRAIN_FRACTION", "0.01"]
    status, out, err = command("compare_methods", "train", *arguments)
    assert status == 0, err
    assert re.search(r"\| HintedKD \| `HintedKD` \| [\d.]+ \| 10.00 \| [\d.]+ \|", out)
    assert re.search(r"\| SFAKD \| `SFAKD` \| [\d.]+ \| 10.00 \| [\d.]+ \|", out)
    assert "fashion_demo: 60 training and 2000 validation images, 10 classes; student resnet8, 1 epochs, seed 0" in out
    assert "epoch   1/1" in err
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"mine.py"}  # no run folder is left
