"""CRD: the loss, the memory banks, and the choice of contrast images."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from one_step import PAIRS, batch, build, check_step, check_student_deploys_alone

from mdistiller.distillers import distiller_dict
from mdistiller.distillers._contrast import similarities
from mdistiller.distillers.CRD import ContrastMemory, ContrastSampler, contrastive_loss
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.models import build_model

LABELS = torch.tensor([3, 0, 3, 1, 3, 3, 1, 0, 3, 1, 3, 0])  # no image of class 2
SMALL = ("CRD.FEAT.DIM", "8", "CRD.NCE.K", "6")


def build_crd(*overrides, labels=LABELS, **pair):
    distiller = build("CRD", *SMALL, *overrides, **pair)
    distiller.attach_data(SimpleNamespace(targets=labels))
    return distiller.train()


def crd_batch():
    index = torch.tensor([0, 3, 7, 9])
    return {"image": batch()[0], "target": LABELS[index], "index": index}


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_loss_literal_value():
    ratios = torch.tensor([[2.0, 0.5, 1.0], [1.0, 0.0, 3.0]])  # K = 2, N = 4: noise 0.5
    positive = math.log(2 / 2.5) + math.log(1 / 1.5)
    negative = math.log(0.5 / 1.0) + math.log(0.5 / 1.5) + math.log(0.5 / 0.5) + math.log(0.5 / 3.5)
    assert contrastive_loss(ratios, 4).item() == pytest.approx(-(positive + negative) / 2, rel=1e-5)


def test_perfect_contrast_has_neither_loss_nor_gradient_at_the_positive():
    ratios = torch.tensor([[1e7, 0.0, 0.0]], requires_grad=True)
    loss = contrastive_loss(ratios, 10)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert ratios.grad[0, 0].abs() < 1e-10
    torch.testing.assert_close(ratios.grad[0, 1:], torch.full((2,), 1 / 0.2), rtol=1e-5, atol=0)  # 1 / noise


def test_similarities_are_the_dot_products_also_of_more_anchors_than_dimensions():
    anchors, bank, index = torch.randn(7, 3), torch.randn(10, 3), torch.randint(10, (7, 5))
    expected = [[sum(a * b for a, b in zip(v, bank[i])) for i in row] for v, row in zip(anchors, index)]
    torch.testing.assert_close(similarities(anchors, bank, index), torch.tensor(expected))


def test_memory_equals_the_published_computation():
    torch.manual_seed(0)
    memory = ContrastMemory(20, 8, temperature=0.5, momentum=0.5)
    banks = memory.bank_student.clone(), memory.bank_teacher.clone()
    student, teacher = unit(4, 8).requires_grad_(), unit(4, 8).requires_grad_()
    index = torch.randint(20, (4, 7))
    ratios = memory(student, teacher, index)
    sum(contrastive_loss(r, 20) for r in ratios).backward()
    for mine, anchors, bank in zip(ratios, (student, teacher), reversed(banks)):
        copy = anchors.detach().clone().requires_grad_()
        rows = bank.index_select(0, index.view(-1)).view(4, 7, 8)
        out = torch.exp(torch.bmm(rows, copy.view(4, 8, 1)) / 0.5).squeeze(2)
        out = out / (out.mean().item() * 20)
        torch.testing.assert_close(mine, out, rtol=1e-4, atol=1e-6)
        contrastive_loss(out, 20).backward()
        torch.testing.assert_close(anchors.grad, copy.grad, rtol=1e-4, atol=1e-6)


def test_the_normalization_is_estimated_once():
    torch.manual_seed(0)
    memory = ContrastMemory(20, 8, 0.07, 0.5)
    assert memory.constants.tolist() == [-1, -1]
    index = torch.randint(20, (4, 7))
    for ratios in memory(unit(4, 8), unit(4, 8), index):
        assert ratios.mean().item() == pytest.approx(1 / 20, rel=1e-4)
    constants = memory.constants.clone()
    memory(unit(4, 8), unit(4, 8), index)
    assert torch.equal(memory.constants, constants)
    assert set(memory.state_dict()) == {"bank_student", "bank_teacher", "constants"}


def test_memory_update_literal():
    memory = ContrastMemory(3, 2, 0.07, momentum=0.25)
    memory.bank_student.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    memory.bank_teacher.copy_(memory.bank_student)
    memory.update(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    length = (0.25**2 + 0.75**2) ** 0.5
    expected = torch.tensor([[0.25 / length, 0.75 / length], [0.0, 1.0], [0.6, 0.8]])
    torch.testing.assert_close(memory.bank_student, expected)
    torch.testing.assert_close(memory.bank_teacher[0], torch.tensor([1.0, 0.0]))


def chi_square(counts):
    """Pearson's statistic against equal shares, in standard deviations from its mean."""
    counts = torch.tensor(counts, dtype=torch.float64)
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return ((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5).item()


def test_draws_are_of_the_right_classes_and_uniform():
    sampler, generator = ContrastSampler(LABELS), torch.Generator().manual_seed(0)
    target = torch.tensor([0, 1, 3, 2])
    other = sampler.other_classes(target, 20_000, generator)
    assert other.shape == (4, 20_000)
    for label, drawn in zip(target.tolist(), other):
        allowed = (label != LABELS).nonzero().flatten().tolist()
        counts = [(drawn == i).sum().item() for i in allowed]
        assert sum(counts) == 20_000  # so no other image was sampled
        assert abs(chi_square(counts)) < 4, label
    same = torch.cat([sampler.same_class(torch.tensor([3, 0]), generator) for _ in range(3000)], dim=1)
    for label, drawn in zip((3, 0), same):
        counts = [(drawn == i).sum().item() for i in (label == LABELS).nonzero().flatten().tolist()]
        assert sum(counts) == 3000
        assert abs(chi_square(counts)) < 4, label


def test_draws_of_many_labels_avoid_the_class():
    labels = torch.randint(10, (500,))
    drawn = ContrastSampler(labels).other_classes(labels[:64], 1000, torch.Generator())
    assert (labels[drawn] != labels[:64, None]).all()


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_contrast_images_of_a_step(mode):
    distiller = build_crd("CRD.MODE", mode)
    given = crd_batch()
    drawn = torch.cat([distiller.contrast_images(given["target"], given["index"], epoch) for epoch in range(60)], dim=1)
    positives, negatives = drawn[:, ::7], drawn.view(4, 60, 7)[..., 1:]
    assert (LABELS[negatives] != given["target"][:, None, None]).all()
    assert (LABELS[positives] == given["target"][:, None]).all()
    if mode == "exact":
        assert (positives == given["index"][:, None]).all()
    else:
        assert positives[0].unique().tolist() == [0, 2, 4, 5, 8, 10]


def test_draws_depend_on_seed_and_epoch_alone():
    given = crd_batch()
    draws = []
    for seed, epoch in ((0, 2), (0, 2), (0, 3), (1, 2)):
        distiller = build_crd("EXPERIMENT.SEED", str(seed))
        if len(draws) == 1:  # earlier epochs and the global generator have no effect
            distiller.contrast_images(given["target"], given["index"], 1)
            torch.rand(3)
        first = distiller.contrast_images(given["target"], given["index"], epoch)
        assert not torch.equal(first, distiller.contrast_images(given["target"], given["index"], epoch))
        draws.append(first)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


@pytest.mark.parametrize("name", ["contrast_index", "contrastive_index", "sample_idx"])
def test_a_step_equals_the_published_one_on_given_contrast_images(name):
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32", *SMALL, "CRD.LOSS.CE_WEIGHT", "0.5"])
    distiller = distiller_dict["CRD"](build_model("resnet8", 7), build_model("wrn_16_2", 7), cfg, 12).train()
    given = crd_batch()
    contrast = torch.randint(12, (4, 7))
    banks = distiller.memory.bank_student.clone(), distiller.memory.bank_teacher.clone()
    logits, losses = distiller(**given, **{name: contrast}, epoch=1)

    loss = 0.0
    for model, embed, bank in (
        (distiller.student, distiller.embed_student, banks[1]),
        (distiller.teacher, distiller.embed_teacher, banks[0]),
    ):
        embedding = F.normalize(F.linear(model(given["image"])[1]["pooled_feat"], embed.weight, embed.bias), dim=1)
        scores = torch.exp((bank[contrast] * embedding[:, None]).sum(2) / 0.07)
        ratios = scores / (scores.mean() * 12).detach()
        positive = ratios[:, 0] / (ratios[:, 0] + 6 / 12 + 1e-7)
        negative = (6 / 12) / (ratios[:, 1:] + 6 / 12 + 1e-7)
        loss = loss - (positive.log().sum() + negative.log().sum()) / 4
    assert set(losses) == {"loss_ce", "loss_kd"}
    torch.testing.assert_close(losses["loss_ce"], 0.5 * F.cross_entropy(logits, given["target"]))
    torch.testing.assert_close(losses["loss_kd"], 0.8 * loss, rtol=1e-4, atol=1e-5)
    changed = (distiller.memory.bank_student != banks[0]).any(1).nonzero().flatten()
    assert torch.equal(changed, given["index"])
    torch.testing.assert_close(distiller.memory.bank_teacher[given["index"]].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_gradients_reach_every_learnable_parameter_and_no_teacher(teacher, student):
    distiller = build_crd(teacher=teacher, student=student)
    check_step(distiller, **crd_batch(), epoch=1)
    check_student_deploys_alone(distiller)


def test_the_state_of_another_kind_of_device_begins_the_epoch_again():
    distiller, given = build_crd(), crd_batch()
    first = distiller.contrast_images(given["target"], given["index"], 3)
    distiller.contrast_images(given["target"], given["index"], 3)
    state = distiller.get_extra_state()
    resumed = build_crd()
    resumed.set_extra_state(state[: 8 + 16])  # a CUDA generator has 16 bytes
    assert torch.equal(resumed.contrast_images(given["target"], given["index"], 3), first)


def test_memory_is_state_and_labels_are_not():
    distiller = build_crd()
    keys = {key for key in distiller.state_dict() if not key.startswith(("student.", "teacher.", "embed"))}
    assert keys == {"memory.bank_student", "memory.bank_teacher", "memory.constants", "_extra_state"}
    embeds = sum(p.numel() for e in (distiller.embed_student, distiller.embed_teacher) for p in e.parameters())
    assert distiller.get_extra_parameters() == embeds + 2 * 12 * 8 + 2


def test_typed_dimensions_of_upstream():
    overrides = ["CRD.FEAT.STUDENT_DIM", "256", "CRD.FEAT.TEACHER_DIM", "256"]
    distiller = build("CRD", *overrides, student="resnet8x4", teacher="resnet8x4")
    assert distiller.embed_student.weight.shape == (128, 256)


def test_without_data_it_says_what_is_missing():
    distiller = build("CRD", *SMALL)
    with pytest.raises(UserError, match="attach_data"):
        distiller(**crd_batch(), epoch=1)
    with pytest.raises(UserError, match="attach_data"):
        distiller(**crd_batch(), contrast_index=torch.zeros(4, 7, dtype=torch.int64))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["CRD.MODE", "exactly"], "CRD.MODE is 'exactly'; expected exact or relax"),
        (["CRD.FEAT.STUDENT_DIM", "256"], "STUDENT_DIM is 256, but the pooled feature has 64 channels"),
        (["CRD.NCE.K", "0"], "CRD.NCE.K is 0"),
        (["CRD.NCE.MOMENTUM", "1"], "CRD.NCE.MOMENTUM is 1.0"),
        (["CRD.NCE.TEMPERATURE", "0"], "CRD.NCE.TEMPERATURE is 0.0"),
    ],
)
def test_bad_options(overrides, message):
    with pytest.raises(UserError, match=message):
        build("CRD", *overrides)


def test_data_that_cannot_work():
    with pytest.raises(UserError, match="all training images are of one class"):
        build_crd(labels=torch.zeros(8, dtype=torch.int64))
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32", *SMALL])
    distiller = distiller_dict["CRD"](build_model("resnet8", 7), build_model("resnet8", 7), cfg, num_data=50)
    with pytest.raises(UserError, match="built for 50 training images, the data set has 12"):
        distiller.attach_data(SimpleNamespace(targets=LABELS))
