"""ReviewKD: fusion, hierarchical context loss, and the pairs of stages."""

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers.ReviewKD import ABF, hcl_loss, pair_stages
from mdistiller.errors import UserError


def grid_means(feat, cells):
    """Average each of `cells × cells` equal parts of `[B, C, H, W]`, one by one."""
    step = feat.shape[2] // cells
    return torch.stack(
        [
            feat[:, :, y * step : (y + 1) * step, x * step : (x + 1) * step].mean((2, 3))
            for y in range(cells)
            for x in range(cells)
        ]
    )


def test_loss_literal_values():
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.zeros(1, 1, 2, 2)
    whole = (1 + 4 + 9 + 16) / 4
    mean = 2.5**2
    assert hcl_loss([student], [teacher]).item() == pytest.approx((whole + 0.5 * mean) / 1.5)
    point = torch.full((1, 1, 1, 1), 3.0)
    assert hcl_loss([point], [torch.zeros(1, 1, 1, 1)]).item() == pytest.approx(9)
    both = hcl_loss([student, point], [teacher, torch.zeros(1, 1, 1, 1)]).item()
    assert both == pytest.approx((whole + 0.5 * mean) / 1.5 + 9)


@pytest.mark.parametrize(("side", "grids"), [(16, (4, 2, 1)), (8, (4, 2, 1)), (4, (2, 1)), (1, ())])
def test_loss_equals_an_independent_computation(side, grids):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, side, side), torch.randn(3, 5, side, side)
    total, weights, weight = ((student - teacher) ** 2).mean(), 1.0, 1.0
    for cells in grids:
        weight /= 2
        weights += weight
        total += weight * ((grid_means(student, cells) - grid_means(teacher, cells)) ** 2).mean()
    torch.testing.assert_close(hcl_loss([student], [teacher]), total / weights)


def test_equal_maps_have_neither_loss_nor_gradient():
    teacher = torch.randn(2, 3, 8, 8)
    student = teacher.clone().requires_grad_()
    loss = hcl_loss([student], [teacher])
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_fusion_equals_its_definition():
    torch.manual_seed(0)
    abf = ABF(3, 4, 6, fuse=True).eval()
    feature, deeper = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    output, fused = abf(feature, deeper, (16, 16))
    reduced = abf.conv1(feature)
    near = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    attention = abf.att_conv(torch.cat([reduced, near], 1))
    expected = torch.zeros(2, 4, 8, 8)
    for channel in range(4):
        expected[:, channel] = reduced[:, channel] * attention[:, 0] + near[:, channel] * attention[:, 1]
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(output, abf.conv2(expected))
    assert output.shape == (2, 6, 16, 16)
    assert ABF(3, 4, 6, fuse=False).att_conv is None


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ((32, 16, 8), (32, 16, 8), [(0, 0), (1, 1), (2, 2)]),
        ((16, 8, 4), (32, 16, 8), [(0, 0), (1, 1), (2, 2)]),  # equally many: in order, whatever their sizes
        ((16, 8, 4, 2), (32, 16, 8), [(0, 0), (1, 1), (3, 2)]),  # MobileNetV2 of a resnet
        ((16, 8, 4, 4), (32, 16, 8), [(0, 0), (1, 1), (3, 2)]),  # vgg of a resnet
        ((32, 16, 8), (16, 8, 4, 4), [(0, 0), (1, 1), (2, 3)]),  # the other way round
        ((16, 8, 4), (32, 16, 8, 4), [(0, 1), (1, 2), (2, 3)]),  # ShuffleNet of ResNet50: equal sizes meet
        ((16, 4), (32, 8, 4), [(0, 1), (1, 2)]),  # equally near: the deeper one
        ((8,), (32, 16, 8, 8), [(0, 3)]),
        ((), (32, 16), []),
    ],
)
def test_which_stages_meet(student, teacher, pairs):
    assert pair_stages(student, teacher) == pairs


def literal_step(distiller, image, shapes, out_shapes, student_key="feats"):
    """The method as in well-known code, for equally many maps and given sizes, with the distiller's weights."""
    _, student = distiller.student(image)
    _, teacher = distiller.teacher(image)
    x = [*student[student_key], student["pooled_feat"].unsqueeze(-1).unsqueeze(-1)][::-1]
    results = []
    residual = None
    for abf, feature, shape, out_shape in zip(distiller.abfs, x, shapes, out_shapes):
        residual = None if residual is None else F.interpolate(residual, (shape, shape), mode="nearest")
        output, residual = abf(feature, residual, (out_shape, out_shape))
        results.insert(0, output)
    return results, [*teacher["preact_feats"][1:], teacher["pooled_feat"][:, :, None, None]]


@pytest.mark.parametrize(
    ("teacher", "student", "shapes", "out_shapes"),
    [
        ("resnet14", "resnet8", [1, 8, 16, 32], [1, 8, 16, 32]),
        ("wrn_16_1", "ShuffleV1", [1, 4, 8, 16], [1, 8, 16, 32]),
        ("vgg8", "MobileNetV2", [1, 2, 4, 8, 16], [1, 4, 4, 8, 16]),
    ],
)
@pytest.mark.parametrize("preact", [False, True])
def test_a_step_equals_the_published_one(teacher, student, shapes, out_shapes, preact):
    overrides = ["REVIEWKD.CE_WEIGHT", "0.5", "REVIEWKD.REVIEWKD_WEIGHT", "3", "REVIEWKD.STU_PREACT", str(preact)]
    distiller = build("REVIEWKD", *overrides, teacher=teacher, student=student)
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=5)
    maps = literal_step(distiller, image, shapes, out_shapes, "preact_feats" if preact else "feats")
    assert set(losses) == {"loss_ce", "loss_kd"}
    torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_kd"], 3 * 0.25 * hcl_loss(*maps), rtol=1e-4, atol=1e-5)


def test_typed_shapes_of_upstream_give_the_same():
    typed = {"SHAPES": "[1,8,16,32]", "OUT_SHAPES": "[1,8,16,32]", "IN_CHANNELS": "[16,32,64,64]"}
    overrides = [word for key, value in typed.items() for word in (f"REVIEWKD.{key}", value)]
    image, target = batch()
    given, inferred = (build("REVIEWKD", *o)(image=image, target=target, epoch=1)[1] for o in (overrides, []))
    assert torch.equal(given["loss_kd"], inferred["loss_kd"])


def test_shorter_typed_lists_leave_the_shallow_maps_out():
    overrides = ["REVIEWKD.IN_CHANNELS", "[48,160,1280]", "REVIEWKD.OUT_SHAPES", "[1,8,16]"]
    distiller = build("REVIEWKD", *overrides, student="MobileNetV2")
    assert distiller.pairs == [(2, 1), (3, 2), (4, 3)]
    image, target = batch()
    assert distiller(image=image, target=target, epoch=1)[1]["loss_kd"].isfinite()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["REVIEWKD.SHAPES", "[1,4,8,16]"], r"\[1, 4, 8, 16\], but the student's last 4 maps have \[1, 8, 16, 32\]"),
        (["REVIEWKD.OUT_CHANNELS", "[8]"], r"OUT_CHANNELS is \[8\], but the teacher's last 1 maps have \[64\]"),
        (["REVIEWKD.OUT_CHANNELS", "[16,16,16,32,64,64]"], "the teacher's last 4 maps"),
        (["REVIEWKD.IN_CHANNELS", "[64,64]", "REVIEWKD.OUT_SHAPES", "[1,8,16]"], "OUT_SHAPES is"),
        (["REVIEWKD.IN_CHANNELS", "256"], "IN_CHANNELS is 256"),
        (["REVIEWKD.MAX_MID_CHANNEL", "0"], "MAX_MID_CHANNEL is 0"),
    ],
)
def test_bad_options(overrides, message):
    with pytest.raises(UserError, match=message):
        build("REVIEWKD", *overrides)


def test_the_largest_number_of_middle_channels_is_honoured():
    for limit, expected in ((512, 64), (24, 24)):
        distiller = build("REVIEWKD", "REVIEWKD.MAX_MID_CHANNEL", str(limit))
        assert {abf.conv1[0].out_channels for abf in distiller.abfs} == {expected}
        parameters = sum(p.numel() for p in distiller.abfs.parameters())
        assert distiller.get_extra_parameters() == parameters


@pytest.mark.parametrize(
    ("teacher", "student"),
    [*PAIRS, ("resnet14", "vgg8"), ("vgg8", "resnet8"), ("MobileNetV2", "wrn_16_1"), ("ShuffleV1", "ShuffleV2")],
)
def test_gradients_reach_every_learnable_parameter_and_no_teacher(teacher, student):
    distiller = build("REVIEWKD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    check_student_deploys_alone(distiller)
