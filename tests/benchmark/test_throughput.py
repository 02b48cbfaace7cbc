"""The benchmark with the smallest settings. Nothing that depends on the machine's speed is asserted."""

import json
import re

import pytest
import torch

from mdistiller.benchmark import synthetic, throughput
from mdistiller.benchmark.hardware import Peak
from mdistiller.benchmark.interleave import TurnBudget, TurnResult, spread
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.checkpoint import read_checkpoint
from mdistiller.engine.trainer import Trainer
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.benchmark.test_interleave import Pipe


@pytest.fixture
def tiny(image_folder, tmp_path):
    """The path of a configuration for a tiny pair."""
    (tmp_path / "tiny.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, MEAN: [0.4, 0.4, 0.4],"
        " STD: [0.2, 0.2, 0.2], NUM_WORKERS: 0}\n"
        "DISTILLER: {TYPE: KD, TEACHER: resnet14, STUDENT: resnet8}\n"
        "SOLVER: {BATCH_SIZE: 8, AMP: 'off'}\n"
    )
    return tmp_path / "tiny.yaml"


def test_ratios_are_those_of_the_rounds():
    ours = [TurnResult(600, 2.0, 100.0, 7.0), TurnResult(400, 1.0, 120.0, 9.0), TurnResult(100, 0.5, 110.0, 8.0)]
    plain = [TurnResult(100, 1.0, 500.0, 0.0), TurnResult(50, 1.0, 500.0, 0.0), TurnResult(50, 1.0, 500.0, 0.0)]
    row = throughput.summarize(ours, plain)
    assert row["ratio"] == {"median": 4.0, "q1": 3.5, "q3": 6.0, "min": 3.0, "max": 8.0}
    assert row["images_per_second"] == {"median": 300.0, "q1": 250.0, "q3": 350.0, "min": 200.0, "max": 400.0}
    assert row["baseline"]["median"] == 50.0
    assert (row["host_mib"], row["device_mib"]) == (120.0, 9.0)
    assert set(throughput.summarize(ours, None)) == {"images_per_second", "host_mib", "device_mib"}
    assert spread([2.0]) == dict.fromkeys(("median", "q1", "q3", "min", "max"), 2.0)


def test_a_row_for_each_pair_method_and_setting():
    overrides = ("SOLVER.AMP", "bf16")
    settings = ((), ("SOLVER.AMP", "off"))
    cases = throughput.make_cases(("res56_res20", "vgg13_vgg8"), None, ("KD", "LSKD"), settings, overrides, False)
    assert len({(case.path, case.method, case.setting) for case in cases}) == len(cases) == 8
    last = cases[-1].cfg()
    assert (last.DISTILLER.STUDENT, last.DISTILLER.TYPE, last.KD.LOGIT_STAND) == ("vgg8", "KD", True)
    assert (last.SOLVER.AMP, cases[-2].cfg().SOLVER.AMP) == ("off", "bf16")
    (case,) = throughput.make_cases(("res56_res20",), None, (), (), (), True)
    assert (case.method, case.setting, case.warm, case.cfg().DISTILLER.STUDENT) == ("SFAKD", "", True, "resnet20")


def test_the_table(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "measure_peak", lambda device, dtype: Peak(1e12, 1e15))
    arguments = ["--cfg", tiny, "--baseline", "--warm", "--rounds", "2", "--steps", "2", "--json", "speed.json"]
    overrides = ("SOLVER.LR", "0.01", "DATASET.INPUT_SIZE", "None")
    status, out, err = command("benchmark", *arguments, "--setting", "DISTILLER.TYPE SFAKD", *overrides)
    assert status == 0, err
    header, _, row, _, conditions = out.splitlines()
    assert header.startswith(
        "| pair | method | setting | precision | images/s | baseline | ratio | range | memory, MiB |"
    )
    assert row.startswith("| resnet14 → resnet8 | SFAKD | `DISTILLER.TYPE SFAKD` | float32 | ")
    for text in ("imagefolder, batch 8", torch.__version__, "2 interleaved rounds of 2 steps", "KD's loss", "warm: "):
        assert text in conditions
    assert "DATASET.INPUT_SIZE is not set" in err  # not in the table
    last = r"round 2 of 2: the training loop [\d.]+, the baseline loop [\d.]+ images/s"
    assert re.fullmatch(last, err.splitlines()[-1])
    (figures,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    ours, plain = figures["turns"]["ours"], figures["turns"]["baseline"]
    # 36 images in batches of 8: the fifth has 4; the first of three rounds is not counted
    assert [part["images"] for part in ours] == [part["images"] for part in plain] == [16, 12]
    ratios = [a["images"] / a["seconds"] / (b["images"] / b["seconds"]) for a, b in zip(ours, plain)]
    assert figures["ratio"]["median"] == pytest.approx(sum(ratios) / 2)
    assert f"| {min(ratios):.2f}–{max(ratios):.2f} |" in row
    assert min(part["host_mib"] for part in ours + plain) > 50
    # with a given peak, the roofline does not depend on this machine
    roofline = 8 * 1e12 / figures["cost"]["flops"]
    assert figures["roofline"]["median"] == pytest.approx(roofline)
    assert figures["bound"] == "arithmetic"
    rates = [part["images"] / part["seconds"] for part in ours]
    assert figures["of_roofline"]["median"] == pytest.approx(sum(rates) / 2 / roofline)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images",
        "speed.json",
        "tiny.yaml",
    ]  # no run folder is left


@pytest.mark.parametrize(("warm", "expected"), [(True, [1, 1, 1, 1]), (False, [1, 2, 1])])
def test_warm_rounds_repeat_an_epoch_that_was_trained_on_before(tiny, tmp_path, monkeypatch, warm, expected):
    epochs = []
    train_epoch = Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, *args: epochs.append(args[0]) or train_epoch(self, *args))
    overrides = ("SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[]", "LOG.WANDB", "False")
    (case,) = throughput.make_cases((), str(tiny), ("NONE",), (), overrides, warm)
    pipe = Pipe(TurnBudget(steps=5), TurnBudget(steps=6))
    with pytest.raises(EOFError):
        throughput.run_trainer(case, pipe)
    assert epochs == expected
    assert [part.images for part in pipe.sent[1:]] == [36, 36 + 8]  # the untimed epoch is in no turn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; give a number above 0"),
        (["--seconds", "nan"], "--seconds is nan; give a number above 0"),
        (["--steps", "5", "--seconds", "5"], "--seconds and --steps exclude each other"),
        (["--pair", "res56_res20", "--cfg", "tiny.yaml"], "--pair and --cfg exclude each other"),
        (
            ["--json", "nowhere/speed.json"],
            "--json nowhere/speed.json: the folder nowhere does not exist; create it, or give another path",
        ),
        (["--setting", "'SOLVER.LR"], "argument --setting: invalid split value"),
        (["--cfg", "tiny.yaml", "--setting", "SOLVER.LRR 1"], "unknown config key SOLVER.LRR"),
        (["--pair", "res56_res21", "DATASET.TYPE", "fashion_demo"], "unknown pair 'res56_res21'; did you mean res56"),
        (["--cfg", "tiny.yaml", "--method", "FITNETS"], "unknown method 'FITNETS'; did you mean FitNet"),
        (["--cfg", "tiny.yaml", "--method", "KDSVD", "KDSVD.K", "17"], "KDSVD.K is 17; expected 1 to 16"),
        (
            ["--cfg", "tiny.yaml", "--method", "SFAKD", "SOLVER.TRAINER", "dot"],
            "needs loss_ce .*, this distiller gives",
        ),
    ],
)
def test_errors_are_one_line(command, tiny, arguments, message):
    status, out, err = command("benchmark", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    with pytest.raises(UserError, match=message):
        raise UserError(err)


def test_random_images_and_a_random_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "NUM_CLASSES", 3)
    monkeypatch.setattr(synthetic, "IMAGES_PER_CLASS", 2)
    words = ["DISTILLER.TEACHER", "resnet14", *synthetic.make_images(tmp_path / "pictures")]
    cfg = load_cfg(None, words)
    assert len(list(tmp_path.glob("pictures/train/*/*.jpg"))) == 6
    file = synthetic.save_random_teacher(cfg, tmp_path)
    teacher = build_model("resnet14", 3)
    teacher.load_state_dict(read_checkpoint(file)["model"])
    with torch.no_grad():
        feature = teacher.eval()(torch.randn(8, 3, 32, 32))[1]["pooled_feat"]
    assert 0.01 < feature.std() < 10
