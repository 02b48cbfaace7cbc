"""SFAKD: each part against an independent computation of its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import check_gradients
from torch import nn

from mdistiller.distillers import distiller_dict
from mdistiller.distillers.SFAKD import (
    SFAKD,
    BottleneckProjector,
    FrequencyBranch,
    FrequencyFilter,
    Fusion,
    HighPass,
    SFAKDHead,
    SpatialBranch,
    map_alignment_loss,
    pooled_alignment_loss,
)
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.validate import check_settings
from mdistiller.errors import UserError
from mdistiller.models import build_model

SIZES = [
    (8, 8),
    (4, 4),
    (2, 2),
    (1, 1),
    (7, 7),
    (5, 8),
    (8, 3),
    (1, 4),
    (20, 15),
]  # the last one is too large for the matrix form


def literal_branch(feature, weight, sigma):
    """The definition, word by word: FFT2, filter, shift, mask, shift back, inverse FFT2, real part; in float64."""
    height, width = feature.shape[-2:]
    spectrum = torch.fft.fft2(feature.double(), norm="ortho") * torch.complex(weight[..., 0], weight[..., 1])
    mask = torch.ones(height, width, dtype=torch.float64)
    if height * width > 1:
        for row in range(height):
            for column in range(width):
                squared = (row - height // 2) ** 2 + (column - width // 2) ** 2
                mask[row, column] = 1 - math.exp(-squared / (2 * (sigma * min(height, width)) ** 2))
        mask /= mask.max()
    masked = torch.fft.ifftshift(torch.fft.fftshift(spectrum, dim=(-2, -1)) * mask, dim=(-2, -1))
    return torch.fft.ifft2(masked, norm="ortho").real


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("learnable", [False, True])
def test_branch_equals_the_definition_in_value_and_gradient(size, learnable):
    torch.manual_seed(0)
    branch = FrequencyBranch(3, *size, sigma=0.3, learnable_sigma=learnable)
    with torch.no_grad():
        branch.filter.weight.normal_()
    feature = torch.randn(2, 3, *size, requires_grad=True)
    probe = torch.randn(2, 3, *size)
    (branch(feature) * probe).sum().backward()

    weight = branch.filter.weight.detach().double().requires_grad_()
    reference = feature.detach().double().requires_grad_()
    expected = literal_branch(reference, weight, 0.3)
    (expected * probe).sum().backward()
    torch.testing.assert_close(branch(feature).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(feature.grad.double(), reference.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(branch.filter.weight.grad.double(), weight.grad, atol=1e-5, rtol=1e-5)


def test_identity_filter_without_mask_returns_the_feature():
    branch = FrequencyBranch(4, 8, 8, sigma=1e-3, learnable_sigma=False)  # so narrow that only the mean is cut
    feature = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(branch(feature), feature - feature.mean((2, 3), keepdim=True), atol=1e-5, rtol=1e-5)


def test_mask_literal_values():
    mask = torch.fft.fftshift(HighPass(4, 4, sigma=0.25)())  # σ = 1 bin
    gain = {squared: 1 - math.exp(-squared / 2) for squared in (0, 1, 2, 4, 5, 8)}
    rows = [[8, 5, 4, 5], [5, 2, 1, 2], [4, 1, 0, 1], [5, 2, 1, 2]]
    expected = torch.tensor([[gain[d] / gain[8] for d in row] for row in rows])
    torch.testing.assert_close(mask, expected)


@pytest.mark.parametrize("size", SIZES)
def test_mask_cuts_nothing_but_the_mean_hard(size):
    mask = HighPass(*size, sigma=0.1)()
    assert mask.max() == 1
    assert (mask == 0).sum() == (0 if size == (1, 1) else 1)
    assert size == (1, 1) or mask[0, 0] == 0


def test_the_mask_is_kept_unless_its_width_is_learned():
    fixed, learned = HighPass(8, 8, 0.1), HighPass(8, 8, 0.1, learnable=True)
    assert fixed().data_ptr() == fixed().data_ptr()
    assert not list(fixed.parameters())
    torch.testing.assert_close(learned(), fixed())
    learned()[0, 1].backward()
    assert learned.log_sigma.grad < 0  # a wider Gaussian suppresses more of the low frequencies


def test_fft_stays_in_float32_under_autocast():
    branch = FrequencyBranch(4, 8, 8, 0.1, False)
    feature = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = branch(feature)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, branch(feature), rtol=0, atol=0)


def test_channels_last_changes_nothing():
    torch.manual_seed(0)
    head = SFAKDHead(6, 4, 4, 10, 5).eval()
    with torch.no_grad():
        head.projector.fusion.frequency.filter.weight.normal_()
    feature = torch.randn(2, 6, 4, 4)
    expected = head(feature)
    restrided = head.to(memory_format=torch.channels_last)
    given = restrided(feature.to(memory_format=torch.channels_last))
    for name, a, b in zip(given._fields, given, expected):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)


def test_fusion_starts_with_halves_and_either_branch_can_go():
    frequency, spatial = FrequencyBranch(3, 4, 4, 0.1, False), SpatialBranch(3)
    feature = torch.randn(2, 3, 4, 4)
    both = Fusion(frequency, spatial)
    assert (both.alpha.item(), both.beta.item()) == (0.5, 0.5)
    torch.testing.assert_close(both(feature), 0.5 * frequency(feature) + 0.5 * spatial(feature))
    torch.testing.assert_close(Fusion(frequency, None)(feature), 0.5 * frequency(feature))
    torch.testing.assert_close(Fusion(None, spatial)(feature), 0.5 * spatial(feature))


def test_projector_layers():
    projector = BottleneckProjector(256, 65)
    convs = [m for m in projector if isinstance(m, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs]
    assert shapes == [(256, 160, 1, 1), (160, 160, 3, 160), (160, 160, 1, 1), (160, 65, 1, 1)]
    assert all(c.bias is None for c in convs)
    kinds = "".join({nn.Conv2d: "c", nn.BatchNorm2d: "b", nn.ReLU: "r"}[type(m)] for m in projector)
    assert kinds == "cbr" + "ccbr" + "cbr"
    assert projector(torch.randn(2, 256, 4, 4)).shape == (2, 65, 4, 4)


def test_pooled_loss_literal_value_and_gradient():
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    loss = pooled_alignment_loss(student, teacher)
    assert loss.item() == pytest.approx((0 + 4 + 9 + 1 + 1 + 1) / 2)
    loss.backward()
    torch.testing.assert_close(student.grad, student.detach() - teacher)  # 2 (p − t) / B with B = 2
    assert pooled_alignment_loss(teacher, teacher) == 0
    assert pooled_alignment_loss(student, teacher, "mean").item() == pytest.approx(16 / 6)


def test_the_reduction_is_an_option():
    image, target = batch()
    for align in ("pooled", "map"):
        summed, averaged = (
            build("SFAKD.ALIGN", align, "SFAKD.REDUCTION", kind)(image=image, target=target)[1]["loss_feat"]
            for kind in ("sum", "mean")
        )
        torch.testing.assert_close(averaged * 64, summed)  # the teacher has 64 channels


def test_map_loss_pools_the_larger_map():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    expected = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(4):
                cell = teacher[b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
                expected += ((student[b, :, y, x] - cell) ** 2).sum().item()
    assert map_alignment_loss(student, teacher).item() == pytest.approx(expected / (2 * 16), rel=1e-5)
    assert map_alignment_loss(teacher, student).item() == pytest.approx(expected / (2 * 16), rel=1e-5)


def build(*overrides, teacher="resnet20", student="resnet8", size=32):
    torch.manual_seed(0)
    cfg = load_cfg(None, ["DISTILLER.TYPE", "SFAKD", "DATASET.INPUT_SIZE", str(size), *overrides])
    check_settings(cfg)
    return SFAKD(build_model(student, 7), build_model(teacher, 7), cfg).train()


def batch(size=32):
    torch.manual_seed(1)
    return torch.randn(4, 3, size, size), torch.randint(7, (4,))


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("SFAKD.CE_WEIGHT", "0.5", "SFAKD.FEAT_WEIGHT", "0.3")
    image, target = batch()
    logits, losses = distiller(image=image, target=target)
    _, teacher_feats = distiller.teacher(image)
    student_logits, student_feats = distiller.student(image)
    out = distiller.head(student_feats["final_map"])
    assert set(losses) == {"loss_feat", "loss_ce", "loss_probe"}
    expected = (out.pooled - teacher_feats["pooled_feat"]).pow(2).sum(1).mean()
    torch.testing.assert_close(losses["loss_feat"], 0.3 * expected)
    torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(out.logits, target))
    torch.testing.assert_close(losses["loss_probe"], F.cross_entropy(student_logits, target))
    torch.testing.assert_close(logits, out.logits)
    torch.testing.assert_close(out.logits, distiller.teacher.get_classifier()(out.pooled))


def test_a_student_that_equals_the_teacher_has_no_loss():
    pooled = torch.rand(3, 5)
    assert pooled_alignment_loss(pooled, pooled.clone()) == 0
    assert map_alignment_loss(pooled[..., None, None], pooled[..., None, None]) == 0


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["SFAKD.ALIGN", "map"],
        ["SFAKD.LEARNABLE_SIGMA", "True"],
        ["SFAKD.FREQUENCY_BRANCH", "False"],
        ["SFAKD.SPATIAL_BRANCH", "False"],
        ["SFAKD.CLASSIFIER", "student", "SFAKD.CE_WEIGHT", "1"],
    ],
    ids=" ".join,
)
def test_gradients_reach_every_learnable_parameter_and_no_teacher(overrides):
    distiller = build(*overrides, student="MobileNetV2")
    image, target = batch()
    _, losses = distiller(image=image, target=target)
    sum(losses.values()).backward()
    check_gradients(distiller)


def test_the_backbone_does_not_feel_the_probe():
    distiller = build()
    image, target = batch()
    _, losses = distiller(image=image, target=target)
    losses["loss_probe"].backward()
    felt = {name for name, p in distiller.student.named_parameters() if p.grad is not None}
    assert felt == {"fc.weight", "fc.bias"}


def test_building_and_training_leaves_the_teacher_untouched():
    distiller = build()
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    image, target = batch()
    distiller(image=image, target=target)
    assert not any(module.training for module in distiller.teacher.modules())
    for key, value in distiller.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_probing_moves_no_statistics():
    student = build_model("resnet8", 7)
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32"])
    SFAKD(student, build_model("resnet8", 7), cfg)
    counters = [v for k, v in student.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters
    assert not any(counters)


def test_the_bare_student_reading_deploys_the_bare_student():
    distiller = build("SFAKD.CLASSIFIER", "student", "SFAKD.CE_WEIGHT", "1.0").eval()
    image, _ = batch()
    assert distiller.head is None
    torch.testing.assert_close(distiller(image=image), distiller.student(image)[0])
    assert set(distiller.forward_eval(image)) == {"deployed"}
    trained = sum(p.numel() for p in distiller.get_learnable_parameters())
    own = sum(p.numel() for p in distiller.student.parameters())
    assert distiller.get_extra_parameters() == trained - own > 0  # without the copy of the teacher's classifier


def test_deployed_logits_and_probe():
    distiller = build(student="ShuffleV2").eval()
    image, _ = batch()
    outputs = distiller.forward_eval(image)
    own, feats = distiller.student(image)
    torch.testing.assert_close(outputs["deployed"], distiller.head(feats["final_map"]).logits)
    torch.testing.assert_close(outputs["probe"], own)
    torch.testing.assert_close(distiller(image=image), outputs["deployed"])


PAIRS = [
    ("resnet56", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("resnet32x4", "ShuffleV2"),
]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_pairs_take_a_step(teacher, student):
    distiller = build(teacher=teacher, student=student)
    image, target = batch()
    logits, losses = distiller(image=image, target=target)
    sum(losses.values()).backward()
    assert logits.shape == (4, 7)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.head.parameters())


def test_other_input_sizes_are_probed_and_then_held_to():
    distiller = build(size=28).eval()
    assert distiller.head.map_size == (7, 7)
    assert distiller(image=torch.randn(2, 3, 28, 28)).shape == (2, 7)
    with pytest.raises(UserError, match=r"\(8, 8\).*built for \(7, 7\)"):
        distiller(image=torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SFAKD.ALIGN", "maps"], "SFAKD.ALIGN is 'maps'; expected pooled or map"),
        (["SFAKD.CLASSIFIER", "own"], "SFAKD.CLASSIFIER is 'own'"),
        (["SFAKD.SIGMA", "0"], "SFAKD.SIGMA is 0.0; expected a number above 0"),
        (["SFAKD.FEAT_WEIGHT", "-1"], "SFAKD.FEAT_WEIGHT is -1.0"),
        (["SFAKD.FREQUENCY_BRANCH", "False", "SFAKD.SPATIAL_BRANCH", "False"], "both off"),
        (["SFAKD.CLASSIFIER", "student"], "SFAKD.CE_WEIGHT is 0"),
    ],
)
def test_bad_options(overrides, message):
    with pytest.raises(UserError, match=message):
        build(*overrides)


def test_map_alignment_refuses_a_teacher_without_such_a_map():
    with pytest.raises(UserError, match="1280 channels.*160; use SFAKD.ALIGN pooled"):
        build("SFAKD.ALIGN", "map", teacher="MobileNetV2")


def test_the_filter_starts_as_the_identity():
    assert torch.equal(FrequencyFilter(2, 4, 4)(), torch.ones(2, 4, 3, dtype=torch.complex64))


def test_registered():
    assert distiller_dict["SFAKD"] is SFAKD


@pytest.mark.parametrize("size", [4, 20], ids=["by matrices", "by torch.fft"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_head_in_half_precision(size, dtype):
    torch.manual_seed(0)
    head = SFAKDHead(6, size, size, 5, 3).eval()
    feature = torch.rand(2, 6, size, size)
    with torch.no_grad():
        expected = head(feature).logits
        logits = head.to(dtype)(feature.to(dtype)).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.02)


def test_logits_are_not_rounded_under_autocast():
    torch.manual_seed(0)
    head, feature = SFAKDHead(6, 4, 4, 5, 3).eval(), torch.rand(2, 6, 4, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = head(feature)
    assert output.logits.dtype == torch.float32
    assert torch.equal(
        output.logits, torch.nn.functional.linear(output.pooled, head.classifier.weight, head.classifier.bias)
    )


def test_a_teacher_with_a_parametrized_classifier():
    classifier = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
    head = SFAKDHead.with_classifier(classifier, in_channels=6, height=4, width=4)
    assert torch.equal(head.classifier.weight, classifier.weight) and torch.equal(head.classifier.bias, classifier.bias)
    assert not head.classifier.weight.requires_grad
