"""CAT-KD: class activation maps, whose averages are the logits, and their transfer."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone
from torch import nn

from mdistiller.distillers.CATKD import CATKD, cat_loss, class_activation_maps, forward_with_map
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.models import build_model


def test_maps_literal_values():
    feature = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # one image, two channels, 1x2 cells
    weight = torch.tensor([[1.0, 0.0], [1.0, -1.0], [0.5, 2.0]])
    expected = torch.tensor([[[[1.0, 2.0]], [[-2.0, -2.0]], [[6.5, 9.0]]]])
    torch.testing.assert_close(class_activation_maps(feature, weight), expected)


def test_loss_literal_values():
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert cat_loss(student, teacher, normalize=False).item() == pytest.approx((9 + 4) / 2)
    assert cat_loss(student, teacher).item() == pytest.approx((0.6**2 + 0.2**2) / 2)


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_equals_a_loop(normalize):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 2, 2), torch.randn(3, 5, 2, 2)
    total = 0.0
    for image in range(3):
        for label in range(5):
            a, b = (cams[image, label].double().flatten().tolist() for cams in (student, teacher))
            if normalize:
                a, b = ([v / math.sqrt(sum(w * w for w in cam)) for v in cam] for cam in (a, b))
            total += sum((x - y) ** 2 for x, y in zip(a, b))
    assert cat_loss(student, teacher, normalize).item() == pytest.approx(total / (3 * 5 * 4), rel=1e-4)


def test_a_cam_counts_up_to_its_scale():
    teacher = torch.randn(2, 3, 2, 2)
    student = (5 * teacher).requires_grad_()
    loss = cat_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert cat_loss(-teacher, teacher).item() == pytest.approx(4 / 4)  # opposite unit vectors, over four cells


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18"])
def test_cams_average_to_the_logits(name):
    torch.manual_seed(0)
    model = build_model(name, 7).eval()
    image, _ = batch()
    with torch.no_grad():
        logits, feature_map = forward_with_map(model, image)
        classifier = model.get_classifier()
        averaged = class_activation_maps(feature_map, classifier.weight).mean((2, 3)) + classifier.bias
        torch.testing.assert_close(logits, model(image)[0])
    torch.testing.assert_close(averaged, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleV2"])
def test_batch_norms_run_once_a_step(name):
    model = build_model(name, 7).train()
    forward_with_map(model, batch()[0])
    counts = {m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {1}


@pytest.mark.parametrize("normalize", [True, False])
def test_total_loss_is_the_sum_of_its_definition(normalize):
    distiller = build(
        "CAT_KD", "CAT_KD.LOSS.CE_WEIGHT", "0.5", "CAT_KD.LOSS.CAT_WEIGHT", "3", "CAT_KD.NORMALIZE", str(normalize)
    )
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=1)
    cams = []
    for model in (distiller.student, distiller.teacher):
        cam = class_activation_maps(model(image)[1]["final_map"], model.get_classifier().weight)  # 8x8 cells
        cams.append(F.avg_pool2d(cam, 4))
    assert set(losses) == {"loss_ce", "loss_cat"}
    torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_cat"], 3 * cat_loss(*cams, normalize))


@pytest.mark.parametrize(("teacher", "student"), [*PAIRS, ("MobileNetV2", "ShuffleV2")])
def test_a_step(teacher, student):
    distiller = build("CAT_KD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target, epoch=1)
    assert distiller.get_extra_parameters() == 0


def test_cat_alone_trains_the_classifier_by_its_maps():
    distiller = build("CAT_KD", "CAT_KD.LOSS.CE_WEIGHT", "0")
    image, target = batch()
    sum(distiller(image=image, target=target, epoch=1)[1].values()).backward()
    assert distiller.student.fc.weight.grad.abs().sum() > 0
    assert distiller.student.fc.bias.grad.abs().sum() == 0


def test_the_student_deploys_alone():
    check_student_deploys_alone(build("CAT_KD"))


class Foreign(nn.Module):
    """A model with MDistiller's `forward` only; with a tail, a layer follows its last map."""

    def __init__(self, tail):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=4)
        self.tail = nn.Conv2d(6, 9, 1) if tail else nn.Identity()
        self.fc = nn.Linear(9 if tail else 6, 7)

    def get_classifier(self):
        return self.fc

    def forward(self, image):
        preact = self.conv(image)
        feat = F.relu(preact)
        pooled = self.tail(feat).mean((2, 3))
        return self.fc(pooled), {"feats": [feat], "preact_feats": [preact], "pooled_feat": pooled}


def test_foreign_models_give_their_last_map():
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32"])
    image, target = batch()
    check_step(CATKD(Foreign(tail=False), build_model("resnet8", 7), cfg).train(), image=image, target=target, epoch=1)
    with pytest.raises(UserError, match="the student's last map has 6 channels, its classifier consumes 9"):
        CATKD(Foreign(tail=True), build_model("resnet8", 7), cfg)


def test_a_final_map_is_enough():
    class FinalMap(Foreign):
        def forward(self, image):
            logits, feats = super().forward(image)
            return logits, {"final_map": feats["feats"][-1], "pooled_feat": feats["pooled_feat"]}

    image, target = batch()
    distiller = CATKD(FinalMap(tail=False), build_model("resnet8", 7), load_cfg(None, ["DATASET.INPUT_SIZE", "32"]))
    check_step(distiller.train(), image=image, target=target, epoch=1)


def test_logits_are_those_of_the_model_under_autocast():
    model, (image, _) = build_model("resnet8", 7).eval(), batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, expected = forward_with_map(model, image)[0], model(image)[0]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


def test_building_moves_no_statistics():
    distiller = build("CAT_KD", student="MobileNetV2")
    counters = [value for key, value in distiller.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters
    assert not any(counters)


def test_bad_options():
    with pytest.raises(UserError, match=r"CAT_KD\.LOSS\.CAM_RESOLUTION is 0; expected a number above 0"):
        build("CAT_KD", "CAT_KD.LOSS.CAM_RESOLUTION", "0")
