"""SFAKD's head, loss and gradient equal those of the authors' code; the presets that run it as that code does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from authors_inputs import drawn, golden, in_float64, rounded
from one_step import batch, build
from torch import nn

from mdistiller.distillers.SFAKD import FrequencyBranch, FrequencyFilter, SFAKDHead, map_alignment_loss
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.optim import build_optimizer
from tests.conftest import REPO

CASES = golden("authors_sfakd.json")
PAIRS = sorted(path.stem for path in (REPO / "configs/cifar100/sfakd").glob("*.yaml"))


def set_weight(random, module):
    weight = drawn(random, "normal", module.weight.shape, (2 / np.prod(module.weight.shape[1:])) ** 0.5)
    module.weight.data.copy_(rounded(weight))
    if module.bias is not None:
        module.bias.data.copy_(rounded(drawn(random, "normal", module.bias.shape, 0.1)))


def summary(tensor):
    return [tensor.mean().item(), tensor.std().item(), tensor.flatten()[0].item(), tensor.flatten()[-1].item()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['channels_student']}-{case['channels_teacher']}")
def test_the_head_equals_the_authors(case, monkeypatch):
    in_float64(monkeypatch)
    channels, out_channels, size = case["channels_student"], case["channels_teacher"], case["size_student"]
    head = SFAKDHead(channels, size, size, out_channels, case["num_classes"]).double().train()
    fusion, bottleneck = head.projector.fusion, head.projector.bottleneck

    random = np.random.RandomState(case["seed"])
    parts = [rounded(drawn(random, "normal", (channels, size, size))) for _ in range(2)]
    fusion.frequency.filter.weight.data.copy_(torch.stack(parts, dim=-1))
    convs = [module for module in bottleneck if isinstance(module, nn.Conv2d)]
    for module in (fusion.spatial, *convs, head.classifier):
        set_weight(random, module)
    fusion.alpha.data.fill_(0.7)
    fusion.beta.data.fill_(0.4)
    student, teacher = (
        rounded(drawn(random, "normal", (4, depth, side, side), relu=True))
        for depth, side in ((channels, size), (out_channels, case["size_teacher"]))
    )

    student.requires_grad_()
    output = head(student)
    loss = map_alignment_loss(output.projected, teacher, "mean")
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(case["loss_mse"], rel=1e-6)
    assert grad.norm().item() == pytest.approx(case["student_grad_norm"], rel=1e-6)
    assert summary(output.logits) == pytest.approx(case["logits"], rel=1e-6)
    assert summary(output.pooled) == pytest.approx(case["pooled"], rel=1e-6)


def test_the_uniform_filter():
    torch.manual_seed(0)
    weight = FrequencyFilter(20, 8, 8, "uniform").weight
    scaled = weight * 20**2
    assert weight.shape == (20, 8, 8, 2)
    assert scaled.min() >= 0
    assert scaled.max() < 1
    torch.testing.assert_close(scaled.mean((0, 1, 2)), torch.full((2,), 0.5), rtol=0, atol=0.03)
    torch.testing.assert_close(scaled.std((0, 1, 2)), torch.full((2,), 12**-0.5), rtol=0, atol=0.02)


def test_the_filters_start_is_an_option():
    def start(*overrides):
        return build("SFAKD", *overrides).head.projector.fusion.frequency.filter.weight

    torch.testing.assert_close(start(), FrequencyBranch(64, 8, 8, 0.1, False).filter.weight)
    assert 0 < start("SFAKD.FILTER_INIT", "uniform").max() < 64**-2


@pytest.mark.parametrize("pair", PAIRS)
def test_the_presets_are_the_authors_settings(pair):
    text, code = (load_cfg(f"configs/cifar100/{folder}/{pair}.yaml") for folder in ("sfakd", "sfakd_code"))
    assert (code.SFAKD.ALIGN, code.SFAKD.FILTER_INIT, code.SFAKD.CE_WEIGHT) == ("map", "uniform", 0)
    assert (code.SFAKD.REDUCTION, code.SFAKD.FEAT_WEIGHT) == ("mean", 1)
    assert f"sfakd_code_{pair}" == code.EXPERIMENT.NAME
    assert (code.SOLVER.EPOCHS, code.SOLVER.BATCH_SIZE, code.SOLVER.WEIGHT_DECAY) == (240, 64, 0.0005)
    assert (code.DISTILLER, code.SOLVER, code.DATASET) == (text.DISTILLER, text.SOLVER, text.DATASET)


def test_a_preset_averages_the_error_over_all_elements():
    cfg = load_cfg("configs/cifar100/sfakd_code/res56_res20.yaml")
    overrides = [
        word
        for key in ("ALIGN", "FILTER_INIT", "REDUCTION", "FEAT_WEIGHT")
        for word in (f"SFAKD.{key}", str(cfg.SFAKD[key]))
    ]
    distiller = build("SFAKD", *overrides)  # its teacher has 64 channels, too
    image, target = batch()
    losses = distiller(image=image, target=target)[1]
    projected = distiller.head(distiller.student(image)[1]["final_map"]).projected
    expected = F.mse_loss(projected, distiller.teacher(image)[1]["final_map"])
    assert set(losses) == {"loss_probe", "loss_feat"}
    torch.testing.assert_close(losses["loss_feat"], expected)


def test_all_parameters_decay():
    """Including the filter and the weights of the fusion, as in the authors' code."""
    distiller = build("SFAKD")
    cfg = load_cfg("configs/cifar100/sfakd_code/res56_res20.yaml")
    optimizer = build_optimizer(cfg, distiller.get_learnable_parameters(), distiller.get_no_decay_parameters())
    (group,) = optimizer.param_groups
    decayed = {id(parameter) for parameter in group["params"]}
    assert group["weight_decay"] == 0.0005
    assert all(id(parameter) in decayed for parameter in distiller.head.projector.parameters())
