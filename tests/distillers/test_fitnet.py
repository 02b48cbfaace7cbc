"""FitNet: the regressor and the hint; also the shape helpers of `_common`."""

import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone
from torch import nn

from mdistiller.distillers._common import ConvReg, match_size, resolve_input_size, stage_shapes
from mdistiller.distillers.FitNet import hint_loss
from mdistiller.errors import UserError
from mdistiller.models import build_model


def test_literal_values():
    student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
    assert hint_loss(student, teacher).item() == pytest.approx((1 + 9) / 2)


def test_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    gaps = [(a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist())]
    assert hint_loss(student, teacher).item() == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)


def test_the_hint_itself_has_no_loss_and_no_gradient():
    teacher = torch.rand(2, 3, 4, 4)
    student = teacher.clone().requires_grad_()
    loss = hint_loss(student, teacher)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


@pytest.mark.parametrize(
    ("size_student", "size_teacher", "kind", "kernel"),
    [
        ((8, 8), (4, 4), nn.Conv2d, (3, 3)),
        ((4, 4), (8, 8), nn.ConvTranspose2d, (4, 4)),
        ((8, 8), (8, 8), nn.Conv2d, (1, 1)),
        ((8, 8), (2, 2), nn.Conv2d, (7, 7)),
        ((8, 6), (8, 3), nn.Conv2d, (1, 4)),
        ((2, 2), (8, 8), nn.Conv2d, (1, 1)),
        ((4, 4), (7, 7), nn.Conv2d, (1, 1)),
        ((8, 4), (4, 8), nn.Conv2d, (1, 1)),
    ],
)
def test_regressor_reaches_every_size(size_student, size_teacher, kind, kernel):
    regressor = ConvReg((2, 5, *size_student), (2, 3, *size_teacher))
    assert type(regressor.conv) is kind
    assert regressor.conv.kernel_size == kernel
    out = regressor(torch.randn(2, 5, *size_student))
    assert out.shape == (2, 3, *size_teacher)
    assert out.min() == 0
    linear = ConvReg((2, 5, *size_student), (2, 3, *size_teacher), use_relu=False)
    assert linear(torch.randn(2, 5, *size_student)).min() < 0


def test_regressor_has_the_well_known_state_keys():
    keys = set(ConvReg((2, 5, 8, 8), (2, 3, 8, 8)).state_dict())
    norm = {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    assert keys == {"conv.weight", "conv.bias"} | norm


def test_match_size_pools_the_larger_map():
    torch.manual_seed(0)
    large, small = torch.randn(2, 3, 6, 4), torch.randn(2, 5, 3, 2)
    cells = [large[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3)) for y in range(3) for x in range(2)]
    expected = torch.stack(cells, 2).view(2, 3, 3, 2)
    for pooled, kept in (match_size(large, small), reversed(match_size(small, large))):
        torch.testing.assert_close(pooled, expected)
        assert kept is small
    odd, _ = match_size(torch.randn(2, 3, 7, 7), torch.randn(2, 5, 4, 4))
    assert odd.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("given", "dataset_size", "expected"),
    [(None, 32, (32, 32)), ([24, 40], 32, (24, 40)), ((32, 32), None, (32, 32)), (64, 32, (64, 64))],
)
def test_a_given_input_size_wins(given, dataset_size, expected):
    assert resolve_input_size(given, dataset_size, "FITNET.INPUT_SIZE") == expected


@pytest.mark.parametrize(
    ("given", "dataset_size", "message"),
    [
        (None, None, "FITNET.INPUT_SIZE is None and the size of the images is unknown"),
        ([32], 32, r"FITNET.INPUT_SIZE is \[32\]; expected \[height, width\]"),
        ([0, 32], 32, r"\[0, 32\]"),
        ("32x32", 32, "'32x32'"),
    ],
)
def test_bad_input_sizes(given, dataset_size, message):
    with pytest.raises(UserError, match=message):
        resolve_input_size(given, dataset_size, "FITNET.INPUT_SIZE")


def test_probing_shapes_moves_no_statistics_and_keeps_the_mode():
    model = build_model("resnet8", 7).train()
    shapes = stage_shapes(model, (32, 24))
    assert [tuple(shape[1:]) for shape in shapes] == [(16, 32, 24), (16, 32, 24), (32, 16, 12), (64, 8, 6)]
    assert model.training
    assert not any(v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked"))


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build(
        "FITNET", "FITNET.LOSS.CE_WEIGHT", "0.5", "FITNET.LOSS.FEAT_WEIGHT", "3", "FITNET.HINT_LAYER", "1"
    )
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    error = (distiller.conv_reg(student["feats"][1]) - teacher["feats"][1]).square().mean()
    torch.testing.assert_close(loss_kd, 3 * error)


@pytest.mark.parametrize("layer", ["2", "3"])
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student, layer):
    distiller = build("FITNET", "FITNET.HINT_LAYER", layer, teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.conv_reg.parameters())
    check_student_deploys_alone(distiller)


def test_a_hint_layer_that_one_model_lacks():
    for layer, expected in (("4", "0 to 3: the student gives 4 .* teacher 5"), ("-1", "0 or more")):
        with pytest.raises(UserError, match=f"FITNET.HINT_LAYER is {layer}; expected {expected}"):
            build("FITNET", "FITNET.HINT_LAYER", layer, teacher="vgg8", student="ShuffleV1")


def test_images_of_another_size_than_configured():
    distiller = build("FITNET", "FITNET.INPUT_SIZE", "[64, 64]", teacher="resnet8", student="MobileNetV2")
    image, target = batch()
    distiller(image=image, target=target)  # the regressor doubles the size, so any size works
    with pytest.raises(UserError, match=r"set FITNET.INPUT_SIZE to None"):
        build("FITNET", "FITNET.INPUT_SIZE", "[60, 60]", "FITNET.HINT_LAYER", "3", student="MobileNetV2")
