"""Which parameters share a weight decay and a learning rate: the groups of the optimizer."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Set, Tuple

from torch import nn
from yacs.config import CfgNode

from ...distillers import Distiller
from ...errors import UserError

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
LONG = 4  # a sequence of more modules, inside another module, counts as blocks
MIN_LAYERS = 3


def parameter_groups(
    parameters: List[nn.Parameter], no_decay: Iterable[nn.Parameter], lr_scales: Mapping[nn.Parameter, float]
) -> List[Dict[str, Any]]:
    """Return the groups of an optimizer; with equal settings for all parameters there is one.

    Among groups with the same learning rate, that without weight decay comes last.

    Args:
        parameters: all trained parameters.
        no_decay: the parameters that take no weight decay. Others than `parameters` are ignored.
        lr_scales: the factors of the learning rate, for parameters whose factor is not 1.
    """
    exempt = {id(parameter) for parameter in no_decay}
    groups: Dict[Tuple[float, bool], List[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((lr_scales.get(parameter, 1.0), id(parameter) in exempt), []).append(parameter)
    return [
        {
            "params": members,
            **({"weight_decay": 0.0} if is_exempt else {}),
            **({"lr_scale": scale} if lr_scales else {}),
        }
        for (scale, is_exempt), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def exempt_parameters(distiller: Distiller, cfg: CfgNode) -> List[nn.Parameter]:
    """Return the parameters that take no weight decay: those that the method names, and perhaps norms and biases.

    With `SOLVER.DECAY_NORMS False` these are the parameters of normalization layers, all with at most one dimension,
    and those that a student names in `no_weight_decay()`, as models of timm do.
    """
    exempt = list(distiller.get_no_decay_parameters())
    if cfg.SOLVER.DECAY_NORMS:
        return exempt
    exempt += [p for p in distiller.get_learnable_parameters() if p.ndim <= 1]
    for module in distiller.modules():
        if isinstance(module, NORMS):
            exempt += module.parameters(recurse=False)
    names = getattr(distiller.student, "no_weight_decay", None)
    if callable(names):
        exempt += [p for name, p in distiller.student.named_parameters() if name in names()]
    return exempt


def lr_scales(distiller: Distiller, cfg: CfgNode) -> Dict[nn.Parameter, float]:
    """Return the factor of the learning rate of each of the student's parameters; none if all factors are 1.

    With `SOLVER.LAYER_DECAY` the last layer has the factor 1, the one before it `LAYER_DECAY`, the one before that
    `LAYER_DECAY²`, and so on. `SOLVER.BACKBONE_LR_FACTOR` multiplies the factor of every parameter except the
    classifier's. What a method adds to the student, such as a head, keeps the factor 1.

    Raises:
        UserError: `LAYER_DECAY` is given, and the student's layers cannot be told apart; or `BACKBONE_LR_FACTOR` is
            given, and the student has no classifier.
    """
    decay, factor = cfg.SOLVER.LAYER_DECAY, cfg.SOLVER.BACKBONE_LR_FACTOR
    if decay == factor == 1:
        return {}
    layers = layers_of(distiller.student)
    if decay < 1 and len(layers) < MIN_LAYERS:
        raise UserError(
            f"SOLVER.LAYER_DECAY is {decay:g}, but the modules of {type(distiller.student).__name__} show only"
            f" {len(layers)} layers; define its layers as modules of their own, or set it to 1"
        )
    scales = {
        parameter: decay ** (len(layers) - 1 - depth) * factor
        for depth, layer in enumerate(layers)
        for parameter in layer
    }
    if factor == 1:
        return scales
    try:
        classifier = distiller.student.get_classifier()
    except UserError as error:
        raise UserError(
            f"SOLVER.BACKBONE_LR_FACTOR needs a student with a classifier: {error}; or set it to 1"
        ) from None
    return {**scales, **{parameter: scales[parameter] / factor for parameter in classifier.parameters()}}


def layers_of(model: nn.Module) -> List[List[nn.Parameter]]:
    """Return the parameters of a model layer by layer, in the order in which its modules are defined.

    A layer is a child of the model; or a block, of a child that is a sequence of blocks. A child that contains a long
    sequence at any depth, as the encoder of a vision transformer does, is divided in the same way. If that gives fewer
    than `MIN_LAYERS`, as for a wrapper around a network, the largest child is replaced by its own children.
    Normalization layers and single parameters with at most one dimension belong to the layer before them.
    """
    first, parts = list(model.parameters(recurse=False)), list(model.children())
    while True:
        layers = _merged([first, *(unit for part in parts for unit in _units_of(part))])
        divisible = [part for part in parts if any(_size(child) for child in part.children())]
        if len(layers) >= MIN_LAYERS or not divisible:
            return layers
        largest = max(divisible, key=_size)
        first += largest.parameters(recurse=False)
        place = parts.index(largest)
        parts[place : place + 1] = largest.children()


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _merged(units: Iterable[List[nn.Parameter]]) -> List[List[nn.Parameter]]:
    """Return the layers that units make, each parameter once."""
    layers: List[List[nn.Parameter]] = []
    seen: Set[int] = set()
    for unit in units:
        new = [parameter for parameter in unit if id(parameter) not in seen]
        seen.update(map(id, new))
        if layers and all(parameter.ndim <= 1 for parameter in new):
            layers[-1] += new
        elif new:
            layers.append(new)
    return layers


def _units_of(child: nn.Module) -> List[List[nn.Parameter]]:
    """Return the parameters of each block of a child."""
    units: List[List[nn.Parameter]] = [list(child.parameters(recurse=False))]
    if _is_sequence(child):
        return units + [list(block.parameters()) for block in child.children()]
    if not any(_is_sequence(module) and len(list(module.children())) > LONG for module in child.modules()):
        return [list(child.parameters())]
    for part in child.children():
        units += _units_of(part)
    return units


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))
