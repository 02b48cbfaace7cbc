"""KDSVD: right singular vectors of the stages, and the relation between neighboring stages."""

import numpy as np
import pytest
import torch
from one_step import PAIRS, batch, build, check_cross_entropy, check_step, check_student_deploys_alone

from mdistiller.distillers.KDSVD import RightSingularVectors, align, kdsvd_loss, right_singular_vectors, stage_relation
from mdistiller.errors import UserError


def plain_vectors(matrix, num_vectors):
    """The same through autograd's derivative of the SVD."""
    return torch.linalg.svd(matrix, full_matrices=False)[2].transpose(1, 2)[:, :, :num_vectors]


def literal_loss(feats_student, feats_teacher, k, translations):
    """One image, one vector, one entry at a time, in float64 after the SVD."""

    def vectors(feat, count):
        # torch's routine, not NumPy's: the signs are arbitrary, and the loss depends on those of the teacher
        _, s, vh = torch.linalg.svd(feat.flatten(1).t(), full_matrices=False)
        return vh[:count].double().numpy(), s[:count].double().numpy()

    images, total = len(feats_student[0]), 0.0
    for image in range(images):
        last = None
        for stage, (student, teacher) in enumerate(zip(feats_student, feats_teacher)):
            wanted, values = vectors(teacher[image], k)
            offered, _ = vectors(student[image], k + 3)
            if translations[stage] is not None:
                offered = [translations[stage].double().numpy() @ v for v in offered]
                offered = [v / np.sqrt((v**2).sum()) for v in offered]
            weights = values / np.sqrt((values**2).sum())
            rows = []
            for vector, weight in zip(wanted, weights):
                best = max(offered, key=lambda v: abs(v @ vector))
                rows.append((best * np.sign(best @ vector) * weight, vector * weight))
            if last is not None:
                for (s, t), (s_last, t_last) in zip(rows, last):
                    for i in range(len(s)):
                        relation = np.exp(-((s[i] - s_last) ** 2) / 8) - np.exp(-((t[i] - t_last) ** 2) / 8)
                        total += (relation**2).sum()
            last = rows
    return total / images


def test_align_literal_values():
    student = torch.tensor([[[0.6, 0.8], [0.8, -0.6]]])  # columns (0.6, 0.8) and (0.8, -0.6)
    teacher = torch.tensor([[[-1.0], [0.0]]])
    torch.testing.assert_close(align(student, teacher), torch.tensor([[[-0.8], [0.6]]]))


def test_relation_literal_values():
    relation = stage_relation(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[1.0], [-1.0], [0.0]]]))
    expected = torch.exp(-torch.tensor([[0.0, 4, 1], [4, 16, 9]]) / 8)
    torch.testing.assert_close(relation, expected.view(1, 2, 3, 1))


def test_vectors_literal_values():
    feat = torch.tensor([[3.0, 0.0], [0.0, -2.0]]).view(1, 2, 1, 2)  # two channels, each at its own position
    vectors, values = right_singular_vectors(feat, 2)
    torch.testing.assert_close(vectors.abs(), torch.eye(2)[None])
    torch.testing.assert_close(values, torch.tensor([[3.0, 2.0]]))


@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 4, 4), (2, 4, 9)])
def test_gradient_equals_autograds_where_that_is_defined(shape):
    torch.manual_seed(0)
    matrix, probe = torch.randn(shape, dtype=torch.float64), torch.randn(2, shape[2], 2, dtype=torch.float64)
    grads = []
    for vectors in (lambda m: RightSingularVectors.apply(m, 2)[0], lambda m: plain_vectors(m, 2)):
        leaf = matrix.clone().requires_grad_()
        (vectors(leaf) * probe).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    matrix = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: RightSingularVectors.apply(m, 2)[0], matrix)


def test_dead_channels_and_dead_maps_are_differentiable():
    torch.manual_seed(0)
    student, teacher = (
        [torch.rand(2, 6, 4, 4), torch.rand(2, 8, 2, 2)],
        [torch.rand(2, 6, 4, 4), torch.rand(2, 8, 2, 2)],
    )
    student[0][:, 2:5] = 0
    student[1][1] = 0
    leaves = [feat.requires_grad_() for feat in student]
    kdsvd_loss(leaves, teacher, 1).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert leaves[0].grad.abs().max() < 10


def test_a_map_that_is_not_finite_is_left_to_the_other_loss():
    broken = [torch.full((1, 4, 2, 2), float("nan")), torch.rand(1, 4, 2, 2)]
    assert kdsvd_loss(broken, [torch.rand(1, 4, 2, 2)] * 2, 1).isfinite()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("translated", [False, True])
def test_loss_equals_an_independent_computation(k, translated):
    torch.manual_seed(0)
    teacher = [torch.rand(2, 4, 3, 3), torch.rand(2, 6, 2, 2), torch.randn(2, 5, 2, 2)]
    student = [torch.rand(2, 3 if translated else 4, 4, 4), torch.rand(2, 6, 2, 2), torch.randn(2, 5, 2, 3)]
    translations = [torch.randn(4, 3) if translated else None, None, None]
    expected = literal_loss(student, teacher, k, translations)
    assert kdsvd_loss(student, teacher, k, translations).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_mdistillers_layout_equals_an_independent_computation(k):
    torch.manual_seed(0)
    teacher = [torch.rand(2, 5, 3, 4), torch.rand(2, 6, 2, 3), torch.randn(2, 7, 4, 2)]
    student = [torch.rand(2, 3, 5, 4), torch.rand(2, 6, 2, 3), torch.randn(2, 4, 3, 2)]
    # rows are channels and rows of pixels, columns are columns of pixels: maps of W channels, of C · H pixels
    turned = [[feat.permute(0, 3, 1, 2).flatten(2)[..., None] for feat in feats] for feats in (student, teacher)]
    expected = literal_loss(*turned, k, [None] * 3)
    assert kdsvd_loss(student, teacher, k, layout="mdistiller").item() == pytest.approx(expected, rel=1e-4)


def test_the_same_maps_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    teacher = [torch.rand(2, 4, 4, 4), torch.rand(2, 6, 2, 2)]
    student = [(3 * feat).requires_grad_() for feat in teacher]  # the scale has no effect
    loss = kdsvd_loss(student, teacher, 2)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-8)
    assert all(feat.grad.abs().max() < 1e-5 for feat in student)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    student, teacher = ([torch.rand(2, 4, 4, 4), torch.rand(2, 6, 2, 2)] for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = kdsvd_loss(student, teacher, 1)
    torch.testing.assert_close(loss, kdsvd_loss(student, teacher, 1), rtol=0, atol=0)


def test_total_loss_is_the_sum_of_its_definition():
    distiller = build("KDSVD", "KDSVD.LOSS.CE_WEIGHT", "0.5", "KDSVD.LOSS.FEAT_WEIGHT", "3", "KDSVD.K", "2")
    loss_kd, student, teacher = check_cross_entropy(distiller, 0.5)
    torch.testing.assert_close(loss_kd, 3 * kdsvd_loss(student["feats"][1:], teacher["feats"][1:], 2))


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_step(teacher, student):
    distiller = build("KDSVD", teacher=teacher, student=student)
    image, target = batch()
    check_step(distiller, image=image, target=target)
    check_student_deploys_alone(distiller)


def test_only_channels_that_differ_are_translated():
    assert build("KDSVD").get_extra_parameters() == 0
    mixed = build("KDSVD", teacher="wrn_16_2", student="wrn_16_1")
    assert [tuple(p.shape) for p in mixed.translations] == [(32, 16), (64, 32), (128, 64)]
    assert mixed.get_extra_parameters() == 32 * 16 + 64 * 32 + 128 * 64


def test_mdistillers_layout_is_an_option():
    distiller = build("KDSVD", "KDSVD.LAYOUT", "mdistiller", teacher="wrn_16_2", student="wrn_16_1")
    assert distiller.get_extra_parameters() == 0  # other channels need no translation
    loss_kd, student, teacher = check_cross_entropy(distiller, 1.0)
    expected = kdsvd_loss(student["feats"][1:], teacher["feats"][1:], 1, layout="mdistiller")
    torch.testing.assert_close(loss_kd, expected)
    image, target = batch()
    check_step(distiller, image=image, target=target)


def test_mdistillers_layout_needs_equal_widths():
    message = r"equal widths, the student's are \[.*2\] and the teacher's \[.*4\] pixels wide; use KDSVD.LAYOUT pixels"
    with pytest.raises(UserError, match=message):
        build("KDSVD", "KDSVD.LAYOUT", "mdistiller", teacher="vgg8", student="MobileNetV2")


@pytest.mark.parametrize(("k", "expected"), [("0", "1 or more"), ("5", "1 to 4")])
def test_more_vectors_than_a_stage_can_have(k, expected):
    with pytest.raises(UserError, match=f"KDSVD.K is {k}; expected {expected}"):
        build("KDSVD", "KDSVD.K", k, teacher="vgg8", student="MobileNetV2")  # MobileNetV2 ends at 2x2 pixels
