"""Accuracy, the epoch's meter, precision, and what the report makes of them."""

import json

import pytest
import torch

from mdistiller.engine.evaluation.evaluate import count_correct, evaluate
from mdistiller.engine.log.run_text import duration, epoch_line, final_line, final_table
from mdistiller.engine.meter import EpochMeter, NonFiniteLoss
from mdistiller.engine.run.records import read_references
from mdistiller.engine.speed import precision
from mdistiller.engine.step import TrainStep
from mdistiller.errors import UserError

LOGITS = torch.tensor(
    [
        [9.0, 1, 2, 3, 4, 5, 6],  # target 0: first
        [9.0, 1, 2, 3, 4, 5, 6],  # target 2: fifth
        [9.0, 1, 2, 3, 4, 5, 6],  # target 1: not among five
    ]
)
TARGET = torch.tensor([0, 3, 1])


def test_count_correct_literal():
    assert count_correct(LOGITS, TARGET).tolist() == [1, 2]
    assert count_correct(LOGITS[:, :3], torch.tensor([0, 2, 1])).tolist() == [1, 3]


class TwoBatches(list):
    num_images = 5


def test_evaluate_counts_each_image_once():
    batches = TwoBatches(
        [
            {"image": LOGITS, "target": TARGET},
            {"image": LOGITS[:2], "target": torch.tensor([6, 6])},
        ]
    )
    result = evaluate(lambda image: {"deployed": image, "probe": -image}, batches)
    assert result == {"deployed_top1": 20.0, "deployed_top5": 80.0, "probe_top1": 20.0, "probe_top5": 40.0}


def test_meter_weights_batches_by_their_size():
    meter = EpochMeter(1)
    meter.add(1, {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}, LOGITS, {"target": TARGET})
    meter.add(2, {"loss_a": torch.tensor(5.0), "loss_b": torch.tensor(2.0)}, LOGITS[:1], {"target": TARGET[:1]})
    assert meter.sync() == {1: {"loss_a": 1.0, "loss_b": 2.0}, 2: {"loss_a": 5.0, "loss_b": 2.0}}
    assert meter.sync() == {}
    assert meter.averages() == {"loss": 4.0, "loss_a": 2.0, "loss_b": 2.0, "train_top1": 50.0, "train_top5": 75.0}


def test_losses_that_change_their_names():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    meter = EpochMeter(1)
    meter.add(1, {"loss_a": one, "loss_b": two}, LOGITS, {"target": TARGET})
    meter.add(2, {"loss_b": two, "loss_a": one}, LOGITS, {"target": TARGET})  # another order
    for losses, named in (({"loss_a": one}, "loss_a"), ({"loss_a": one, "loss_c": two}, "loss_a, loss_c")):
        with pytest.raises(UserError, match=f"the losses {named} at epoch 1, step 3; .* epoch .loss_a, loss_b., and"):
            meter.add(3, losses, LOGITS, {"target": TARGET})
    assert meter.sync() == {step: {"loss_a": 1.0, "loss_b": 2.0} for step in (1, 2)}
    with pytest.raises(UserError, match="none named loss, which is their sum"):
        EpochMeter(1).add(1, {"loss": one}, LOGITS, {"target": TARGET})


def test_float16_whose_gradients_stay_infinite():
    step = TrainStep.__new__(TrainStep)
    step.scaler = torch.amp.GradScaler("cpu")
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], 0.1)
    for number in range(17):
        step.check_scale(2, number)
        step.scaler.scale(weight * float("inf")).backward()
        step.scaler.step(optimizer)
        step.scaler.update()
    with pytest.raises(
        NonFiniteLoss, match="not finite in float16 at epoch 2, step 17, .*: set SOLVER.AMP off or bf16"
    ):
        step.check_scale(2, 17)
    assert float(weight.detach()) == 1.0  # no step was taken
    step.scaler = torch.amp.GradScaler("cpu", enabled=False)
    step.check_scale(2, 18)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_meter_names_the_step_of_a_loss_that_is_not_finite(value):
    meter = EpochMeter(3)
    meter.add(7, {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}, LOGITS, {"target": TARGET})
    meter.add(8, {"loss_a": torch.tensor(1.5), "loss_b": torch.tensor(value)}, LOGITS, {"target": TARGET})
    meter.add(9, {"loss_a": torch.tensor(value), "loss_b": torch.tensor(value)}, LOGITS[:1], {"target": TARGET[:1]})
    with pytest.raises(NonFiniteLoss, match=r"epoch 3, step 8 \(loss_a 1.5, loss_b -?(nan|inf)\)") as caught:
        meter.sync()
    evidence = caught.value.evidence
    assert (evidence["epoch"], evidence["step"], evidence["saved_after_step"]) == (3, 8, 9)
    assert evidence["losses"]["loss_a"] == 1.5
    assert evidence["target"].tolist() == TARGET.tolist()
    assert list(evidence["history"]) == [7, 8, 9]


@pytest.mark.parametrize(
    ("mode", "fast", "dtype"),
    [("off", True, None), ("bf16", False, torch.bfloat16), ("auto", True, torch.bfloat16), ("auto", False, None)],
)
def test_precision_on_the_cpu(monkeypatch, mode, fast, dtype):
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: fast)
    picked = precision.pick_precision(mode, torch.device("cpu"))
    assert picked.dtype is dtype
    assert not picked.needs_scaler
    with picked.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


def test_precision_refusals():
    with pytest.raises(UserError, match="SOLVER.AMP is 'half'; expected one of off, bf16, fp16, auto"):
        precision.pick_precision("half", torch.device("cpu"))
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        precision.pick_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (75, "1 min 15 s"), (7290, "2 h 1 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


SUMMARY = {
    "method": "SFAKD",
    "student": "resnet8",
    "teacher": "wrn_16_2",
    "last": {"deployed_top1": 90.0, "deployed_top5": 99.0},
    "best": {"deployed_top1": 91.0, "deployed_top5": 98.0, "epoch": 3},
    "teacher_accuracy": {"deployed_top1": 92.5, "deployed_top5": 99.5},
    "images_per_second": 1234.5,
    "peak_memory_mib": 512,
    "seconds": 75.0,
}


def test_final_table_lists_teacher_run_and_reference(tmp_path):
    alone = {**SUMMARY, "method": "NONE", "last": {"deployed_top1": 85.0, "deployed_top5": 97.0}}
    (tmp_path / "alone.json").write_text(json.dumps(alone))
    table = final_table(SUMMARY, read_references(["alone.json"])).splitlines()
    assert [line.split()[:4] for line in table[2:5]] == [
        ["teacher", "wrn_16_2", "92.50", "99.50"],
        ["student", "resnet8,", "SFAKD", "90.00"],
        ["student", "resnet8,", "alone", "85.00"],
    ]
    assert table[4].endswith("reference run alone.json")


@pytest.mark.parametrize("content", ["", "[]", '{"last": {}}'])
def test_a_reference_that_is_no_summary(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match="EXPERIMENT.REFERENCE bad.json is not the summary.json of a run"):
        read_references(["bad.json"])


def test_final_line_has_every_number():
    assert final_line(SUMMARY) == (
        "done: last top-1 90.00 top-5 99.00 | best top-1 91.00 top-5 98.00 (epoch 3) | teacher top-1 92.50"
        " | 1234 images/s | peak memory 512 MiB | 1 min 15 s"
    )
    assert "no teacher" in final_line({**SUMMARY, "teacher_accuracy": {}})


def test_epoch_line_estimates_what_is_left():
    row = {"epoch": 2, "lr": 0.001, "loss": 1.5, "loss_feat": 1.5, "train_top1": 10.0, "images_per_second": 99.6}
    row.update(deployed_top1=20.0, deployed_top5=30.0, probe_top1=5.0)
    line = epoch_line(row, 10, total_seconds=30.0)
    assert "lr 0.001" in line
    assert "(feat 1.500)" in line
    assert "probe 5.00" in line
    assert line.endswith("100 images/s  2 min 0 s left")
