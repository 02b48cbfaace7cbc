"""SimKD: the projected map against the teacher's, and what is deployed."""

import pytest
import torch
import torch.nn.functional as F
from one_step import batch, build, check_gradients
from torch import nn

from mdistiller.distillers import DeployedStudent, head_dict
from mdistiller.distillers.heads import check_teacher_map
from mdistiller.distillers.SimKD import Projector, SimKDHead, simkd_loss
from mdistiller.errors import UserError
from mdistiller.models import build_model

PAIRS = [("resnet14", "resnet8"), ("wrn_16_1", "MobileNetV2"), ("vgg8", "resnet8"), ("ShuffleV1", "wrn_16_1")]


def test_loss_literal_value_and_gradient():
    projected = torch.tensor([[[[1.0]], [[2.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 2.0], [2.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]]])  # means 2 and 1
    loss = simkd_loss(projected, teacher)
    assert loss.item() == pytest.approx((1 + 1) / 2)
    loss.backward()
    torch.testing.assert_close(projected.grad.flatten(), torch.tensor([-1.0, 1.0]))


def test_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    projected, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    expected = 0.0
    for y in range(4):
        for x in range(4):
            cell = teacher[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3))
            expected += ((projected[:, :, y, x] - cell) ** 2).sum().item() / projected.numel()
    assert simkd_loss(projected, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_equal_maps_have_neither_loss_nor_gradient():
    teacher = torch.rand(2, 3, 4, 4)
    projected = teacher.clone().requires_grad_()
    loss = simkd_loss(projected, teacher)
    loss.backward()
    assert loss == 0
    assert not projected.grad.any()


def test_projector_layers():
    projector = Projector(24, 65, 2)
    convs = [m for m in projector if isinstance(m, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs]
    assert shapes == [(24, 32, 1, 1), (32, 32, 3, 1), (32, 65, 1, 1)]
    assert all(c.bias is None for c in convs)
    assert "".join({nn.Conv2d: "c", nn.BatchNorm2d: "b", nn.ReLU: "r"}[type(m)] for m in projector) == "cbr" * 3


def test_a_larger_map_of_the_student_is_pooled_before_the_projector():
    torch.manual_seed(0)
    head = SimKDHead(3, 4, 4, 6, 5).eval()
    large, small = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 2, 2)
    projected = head.projector(F.avg_pool2d(large, 2))
    output = head(large)
    torch.testing.assert_close(output.projected, projected)
    torch.testing.assert_close(output.logits, head.classifier(projected.mean((2, 3))))
    torch.testing.assert_close(head(small).projected, head.projector(small))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step_equals_its_definition_and_reaches_what_it_trains(teacher, student):
    distiller = build("SIMKD", "SIMKD.FEAT_WEIGHT", "3", teacher=teacher, student=student)
    before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=1)
    own_logits, feats_student = distiller.student(image)
    _, feats_teacher = distiller.teacher(image)
    output = distiller.head(feats_student["final_map"])
    assert set(losses) == {"loss_feat", "loss_probe"}
    torch.testing.assert_close(logits, distiller.teacher.get_classifier()(output.pooled))
    torch.testing.assert_close(losses["loss_feat"], 3 * simkd_loss(output.projected, feats_teacher["final_map"]))
    torch.testing.assert_close(losses["loss_probe"], F.cross_entropy(own_logits, target))

    sum(losses.values()).backward()
    check_gradients(distiller)
    assert all(torch.equal(value, before[key]) for key, value in distiller.teacher.state_dict().items())
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.head.parameters())


def test_the_backbone_does_not_feel_the_probe():
    distiller = build("SIMKD")
    image, target = batch()
    distiller(image=image, target=target)[1]["loss_probe"].backward()
    assert {name for name, p in distiller.student.named_parameters() if p.grad is not None} == {"fc.weight", "fc.bias"}


def test_losses_are_in_float32_under_autocast():
    distiller = build("SIMKD")
    image, target = batch()
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = distiller(image=image, target=target)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_the_deployed_student_is_built_again_from_what_is_saved():
    distiller = build("SIMKD", "SIMKD.FACTOR", "4", teacher="vgg8", student="resnet8").eval()
    image, _ = batch()
    expected = distiller.forward_eval(image)
    assert set(expected) == {"deployed", "probe"}
    torch.testing.assert_close(distiller(image=image), expected["deployed"])
    head = distiller.head
    options = {"in_channels": 64, "height": 4, "width": 4, "out_channels": 512, "num_classes": 7}
    assert (head.kind, head.options) == ("SIMKD", {**options, "bias": True, "factor": 4, "relu": True})
    saved = {"kind": head.kind, "options": head.options, "state": head.state_dict()}
    again = DeployedStudent(distiller.student, head_dict[saved["kind"]](**saved["options"])).eval()
    again.head.load_state_dict(saved["state"])
    torch.testing.assert_close(again(image), expected["deployed"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("teacher", "channels"), [("MobileNetV2", "1280 channels.*160"), ("ShuffleV2", "1024 channels.*464")]
)
def test_a_teacher_whose_map_is_not_what_its_classifier_reads_is_refused(teacher, channels):
    with pytest.raises(UserError, match=f"SIMKD needs.*{channels}; use SFAKD"):
        build("SIMKD", teacher=teacher)


def test_layers_that_keep_the_channels_are_noticed():
    teacher = build_model("resnet14", 7)
    assert check_teacher_map("SIMKD", teacher, 32, "use KD") == (64, 8, 8)

    class Gated(type(teacher)):
        def forward_map(self, final_map):
            return final_map * final_map.sigmoid()

    teacher.__class__ = Gated
    with pytest.raises(UserError, match="the 'pooled_feat' of this Gated is not that average; use KD"):
        check_teacher_map("SIMKD", teacher, 32, "use KD")


@pytest.mark.parametrize(("factor", "expected"), [("0", "1 or more"), ("65", "1 to 64")])
def test_bad_options(factor, expected):
    with pytest.raises(UserError, match=f"SIMKD.FACTOR is {factor}; expected {expected}"):
        build("SIMKD", "SIMKD.FACTOR", factor)
