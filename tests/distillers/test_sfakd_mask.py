"""SFAKD's masks: the Gaussian one, the hard cut, and none."""

import pytest
import torch
from one_step import batch, build

from mdistiller.distillers import head_dict
from mdistiller.distillers.SFAKD import FrequencyBranch, HighPass
from mdistiller.errors import UserError


def test_hard_mask_literal_values():
    mask = torch.fft.fftshift(HighPass(4, 4, sigma=0.25, kind="hard")())  # radius 1 bin, edge included
    expected = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1]]).float()
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 2), (7, 7), (5, 8), (30, 30)])
@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_hard_mask_equals_its_rule(size, sigma):
    height, width = size
    mask = torch.fft.fftshift(HighPass(height, width, sigma, kind="hard")())
    for row in range(height):
        for column in range(width):
            distance = ((row - height // 2) ** 2 + (column - width // 2) ** 2) ** 0.5
            assert mask[row, column] == (distance > round(sigma * min(size), 6)), (row, column)


def test_a_narrow_hard_mask_cuts_the_mean_alone():
    branch = FrequencyBranch(3, 8, 8, 0.1, False, "hard")
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    expected = feature - feature.mean((2, 3), keepdim=True)
    torch.testing.assert_close(branch(feature), expected, atol=1e-5, rtol=1e-5)
    probe = torch.randn(2, 3, 8, 8)
    grads = [torch.autograd.grad((out * probe).sum(), feature)[0] for out in (branch(feature), expected)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_no_mask_leaves_the_feature_as_it_is():
    feature = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(FrequencyBranch(3, 8, 8, 0.1, False, "none")(feature), feature, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "hard", "none"])
def test_nothing_is_cut_from_a_single_position(kind):
    mask = HighPass(1, 1, 0.1, learnable=kind == "gaussian", kind=kind)
    assert mask() == 1
    assert not list(mask.parameters())  # a width that no gradient could reach


@pytest.mark.parametrize("kind", ["gaussian", "hard", "none"])
def test_a_step_and_the_saved_head(kind):
    distiller = build("SFAKD", "SFAKD.MASK.TYPE", kind, "SFAKD.SIGMA", "0.3")
    mask = distiller.head.projector.fusion.frequency.mask
    assert torch.equal(mask(), HighPass(8, 8, 0.3, kind=kind)())
    image, target = batch()
    sum(distiller(image=image, target=target)[1].values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in distiller.get_learnable_parameters())
    again = head_dict["SFAKD"](**distiller.head.options)
    again.load_state_dict(distiller.head.state_dict())
    distiller.eval()
    feats = distiller.student(image)[1]
    assert torch.equal(again.eval()(feats["final_map"]).logits, distiller(image=image))


def test_a_head_saved_without_a_kind_of_mask_is_gaussian():
    head = head_dict["SFAKD"](in_channels=4, height=8, width=8, out_channels=6, num_classes=3, sigma=0.2)
    assert torch.equal(head.projector.fusion.frequency.mask(), HighPass(8, 8, 0.2)())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SFAKD.MASK.TYPE", "soft"], "SFAKD.MASK.TYPE is 'soft'; expected gaussian, hard or none"),
        (["SFAKD.MASK.TYPE", "hard", "SFAKD.LEARNABLE_SIGMA", "True"], "needs SFAKD.MASK.TYPE gaussian, given hard"),
        (["SFAKD.MASK.TYPE", "none", "SFAKD.LEARNABLE_SIGMA", "True"], "given none"),
        (["SFAKD.MASK.TYPE", "hard", "SFAKD.SIGMA", "1"], "cuts all 8×8 frequencies"),
    ],
)
def test_bad_options(overrides, message):
    with pytest.raises(UserError, match=message):
        build("SFAKD", *overrides)


def test_weights_of_the_branches_and_a_trained_width_are_logged():
    distiller = build("SFAKD", "SFAKD.LEARNABLE_SIGMA", "True", "SFAKD.SIGMA", "0.25")
    with torch.no_grad():
        distiller.head.projector.fusion.alpha.fill_(0.25)
    height = distiller.head.map_size[0]
    assert distiller.get_log_values() == {
        "fusion_alpha": 0.25,
        "fusion_beta": 0.5,
        "mask_sigma": pytest.approx(0.25 * height),
    }
    assert build("SFAKD", "SFAKD.FREQUENCY_BRANCH", "False").get_log_values() == {"fusion_beta": 0.5}
    bare = build("SFAKD", "SFAKD.CLASSIFIER", "student", "SFAKD.CE_WEIGHT", "1.0", "SFAKD.FUSION", "fixed")
    assert bare.get_log_values() == {"fusion_alpha": 0.5, "fusion_beta": 0.5}
    assert build("KD").get_log_values() == {}


def test_a_map_of_one_frequency_in_the_format_of_training():
    branch = FrequencyBranch(3, 1, 1, 0.1, False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        branch.filter.weight.copy_(torch.tensor([2.0, 5.0]).expand(3, 1, 1, 2))
    feature = torch.randn(2, 3, 1, 1)
    assert torch.allclose(branch(feature), 2 * feature)  # the imaginary part of a mean's weight has no effect
