"""What a proof counts, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from mdistiller.export.proof import compare, median_ms

EXPECTED = torch.tensor([[10.0, 0.0, 0.0], [0.0, 10.0, 9.9995], [0.0, 10.0, 0.0], [5.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def test_an_equal_export():
    proof = compare(EXPECTED, EXPECTED.clone(), LABELS)
    assert (proof.top1, proof.top1_change, proof.agreement) == (75.0, 0.0, 100.0)
    assert (proof.changed, proof.ties, proof.difference, proof.scale) == (0, 0, 0.0, 10.0)
    assert proof.fault(exact=True, max_drop=0) == ""


def test_a_tie_may_go_either_way():
    found = EXPECTED.clone()
    found[1] = torch.tensor([0.0, 9.9995, 10.0])
    proof = compare(EXPECTED, found, LABELS)
    assert (proof.changed, proof.ties, proof.agreement, proof.top1_change) == (0, 1, 75.0, -25.0)
    assert proof.fault(exact=True, max_drop=0) == ""


def test_one_other_top1_is_a_fault_of_a_float_export_even_if_it_gains():
    found = EXPECTED.clone()
    found[3] = torch.tensor([0.0, 0.0, 5.0])  # right now, wrong before
    proof = compare(EXPECTED, found, LABELS)
    assert (proof.changed, proof.top1_change) == (1, 25.0)
    assert proof.fault(exact=True, max_drop=100) == "the top-1 class of 1 images changed, ties not counted"
    assert proof.fault(exact=False, max_drop=0) == ""


def test_logits_that_differ_much_are_a_fault():
    proof = compare(EXPECTED, EXPECTED * 1.01, LABELS)
    assert proof.fault(exact=True, max_drop=0) == "logits differ by up to 0.1, the largest is 10"


def test_a_loss_beyond_the_limit_is_a_fault():
    found = EXPECTED.clone()
    found[0] = torch.tensor([0.0, 10.0, 0.0])
    proof = compare(EXPECTED, found, LABELS)
    assert proof.fault(exact=False, max_drop=25) == ""
    assert proof.fault(exact=False, max_drop=24.9) == "top-1 fell by 25.00 points, more than 24.9"
    unlabeled = compare(EXPECTED, found, None)
    assert unlabeled.top1 is None and unlabeled.fault(False, 24) == "agreement fell by 25.00 points, more than 24"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_fault(bad):
    found = EXPECTED.clone()
    found[2, 0] = bad
    for exact in (True, False):
        assert compare(EXPECTED, found, LABELS).fault(exact, 100) == "some logits are not finite"


def test_the_report_names_images_runtime_and_figures():
    proof = replace(compare(EXPECTED, EXPECTED, LABELS), images="4 images", runtime="X", latency={1: 0.5, 64: 7})
    assert proof.lines() == [
        "proof     4 images, run in X",
        "          top-1 75.00 (+0.00), agreement 100.00 %, 0 top-1 changed (and 0 ties), largest logit difference 0",
        "latency   batch 1: 0.50 ms, batch 64: 7.00 ms",
    ]


def test_latency_is_of_batches_of_that_size():
    sizes = []
    assert median_ms(lambda pixels: sizes.append(len(pixels)), torch.zeros(3, 2, 2, 3), 7) >= 0
    assert set(sizes) == {7}
