"""Which parameters take weight decay, and their learning rates."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from mdistiller.distillers import Distiller
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.optim import build_optimizer, set_learning_rate
from mdistiller.engine.solver.parameter_groups import exempt_parameters, layers_of, lr_scales, parameter_groups
from mdistiller.errors import UserError
from mdistiller.models import build_model


class Student(nn.Module):
    """A stem, two blocks and a classifier, with one parameter of its own, as vision transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)) for _ in range(2)))
        self.fc = nn.Linear(4, 5)

    def no_weight_decay(self) -> set[str]:
        return {"token"}


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def test_what_takes_no_weight_decay() -> None:
    student = Student()
    distiller = Distiller(student)
    assert exempt_parameters(distiller, load_cfg(None)) == []
    exempt = exempt_parameters(distiller, load_cfg(None, ["SOLVER.DECAY_NORMS", "False"]))
    kept = {name for name, _ in student.named_parameters()} - set(names_of(student, exempt))
    assert kept == {"stem.weight", "blocks.0.0.weight", "blocks.1.0.weight", "fc.weight"}
    norm = nn.LayerNorm((2, 2))  # its weight has two dimensions
    assert len(exempt_parameters(Distiller(norm), load_cfg(None, ["SOLVER.DECAY_NORMS", "False"]))) == 2


def test_layers_in_order() -> None:
    student = Student()
    assert [names_of(student, layer) for layer in layers_of(student)] == [
        ["token"],
        ["stem.weight", "stem.bias", "bn.weight", "bn.bias"],
        ["blocks.0.0.weight", "blocks.0.0.bias", "blocks.0.1.weight", "blocks.0.1.bias"],
        ["blocks.1.0.weight", "blocks.1.0.bias", "blocks.1.1.weight", "blocks.1.1.bias"],
        ["fc.weight", "fc.bias"],
    ]


@pytest.mark.parametrize(("arch", "count"), [("resnet8x4", 5), ("vgg8", 6), ("MobileNetV2", 10), ("ResNet18", 10)])
def test_layers_hold_each_parameter_once(arch: str, count: int) -> None:
    model = build_model(arch, 5)
    layers = layers_of(model)
    assert len(layers) == count
    assert sorted(names_of(model, [p for layer in layers for p in layer])) == sorted(
        name for name, _ in model.named_parameters()
    )
    assert model.get_classifier().weight in set(layers[-1])


def test_blocks_within_an_encoder_are_layers() -> None:
    model = torchvision.models.VisionTransformer(16, 8, num_layers=6, num_heads=1, hidden_dim=8, mlp_dim=8)
    layers = layers_of(model)
    assert len(layers) == 10  # class token, patches, positions, 6 blocks with the last norm, head
    assert sum(len(layer) for layer in layers) == len(list(model.parameters()))
    assert [id(p) for p in layers[2]] == [id(model.encoder.pos_embedding)]


def test_each_layer_has_its_rate() -> None:
    distiller = Distiller(Student())
    cfg = load_cfg(None, ["SOLVER.LAYER_DECAY", "0.5", "SOLVER.MOMENTUM", "0", "SOLVER.WEIGHT_DECAY", "0"])
    scales = lr_scales(distiller, cfg)
    optimizer = build_optimizer(cfg, distiller.get_learnable_parameters(), (), scales)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    set_learning_rate(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.2, 0.4, 0.8]
    before = [parameter.detach().clone() for parameter in distiller.student.parameters()]
    for parameter in distiller.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [float((old - new.detach()).flatten()[0]) for old, new in zip(before, distiller.student.parameters())]
    assert moved == pytest.approx([0.05, *[0.1] * 4, *[0.2] * 4, *[0.4] * 4, *[0.8] * 2], rel=1e-4)
    assert lr_scales(distiller, load_cfg(None)) == {}


def test_what_a_method_adds_keeps_the_full_rate() -> None:
    distiller = Distiller(Student())
    extra = nn.Parameter(torch.zeros(3))
    parameters = [*distiller.get_learnable_parameters(), extra]
    scales = lr_scales(distiller, load_cfg(None, ["SOLVER.LAYER_DECAY", "0.5"]))
    (group,) = [g for g in parameter_groups(parameters, [extra], scales) if any(p is extra for p in g["params"])]
    assert (group["lr_scale"], group["weight_decay"], len(group["params"])) == (1.0, 0.0, 1)


def test_both_kinds_of_groups_together() -> None:
    distiller = Distiller(Student())
    cfg = load_cfg(None, ["SOLVER.LAYER_DECAY", "0.5", "SOLVER.DECAY_NORMS", "False", "SOLVER.WEIGHT_DECAY", "0.25"])
    parameters = distiller.get_learnable_parameters()
    optimizer = build_optimizer(cfg, parameters, exempt_parameters(distiller, cfg), lr_scales(distiller, cfg))
    table = [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    pairs = [(scale, decay) for scale in (1 / 8, 1 / 4, 1 / 2, 1) for decay in (0.25, 0.0)]
    assert table == [(1 / 16, 0.0, 1), *((*pair, 1 if pair[1] or pair[0] == 1 else 3) for pair in pairs)]


class Wrapper(nn.Module):
    """A network as an attribute, at a depth."""

    def __init__(self, network: nn.Module, depth: int) -> None:
        super().__init__()
        self.network = network if depth == 1 else Wrapper(network, depth - 1)


def test_a_wrapper_around_a_network_is_no_layer() -> None:
    network = torchvision.models.resnet18()
    assert layers_of(Wrapper(network, 2)) == layers_of(network)


def test_blocks_at_any_depth_are_layers() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder = nn.Module()
            encoder.layer = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))
            self.body = nn.Module()
            self.body.embeddings, self.body.encoder = nn.Conv2d(3, 2, 1), encoder
            self.classifier = nn.Linear(2, 2)

    model = Transformer()
    assert [names_of(model, layer)[0] for layer in layers_of(model)] == [
        "body.embeddings.weight",
        *(f"body.encoder.layer.{number}.weight" for number in range(12)),
        "classifier.weight",
    ]


def test_a_student_whose_layers_cannot_be_told_apart() -> None:
    distiller = Distiller(nn.Linear(4, 5))
    with pytest.raises(UserError, match="LAYER_DECAY is 0.5, but the modules of Linear show only 1 layers"):
        lr_scales(distiller, load_cfg(None, ["SOLVER.LAYER_DECAY", "0.5"]))


def test_layers_of_a_backbone_beside_a_classifier() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.fc = torchvision.models.resnet18(), nn.Linear(1000, 5)

    network, both = torchvision.models.resnet18(), Both()
    assert len(layers_of(both)) == len(layers_of(network)) + 1
    assert len(layers_of(nn.Sequential(nn.Identity(), network))) == len(layers_of(network))
