"""Warnings before the first step of a run, about mistakes that do not stop it but may make its result useless."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List

import torch
from torch import nn
from yacs.config import CfgNode

from ..distillers import Distiller
from ..distillers._plugins import unread_sections
from ..errors import listed
from ..models._adapt import evaluation_mode, noise
from .cfg import CFG, leaves, to_dict
from .run.origin import same_images

TOLERANCE = 0.01  # for the sum of probabilities; weights may be in half precision


def opening_notes(cfg: CfgNode, distiller: Distiller, origin: Dict[str, Any], input_size: int) -> Iterator[str]:
    """Yield a line for each mistake that was found.

    Args:
        cfg: the resolved configuration.
        distiller: the distiller, before its first step.
        origin: the origin of the run, as `origin_of` returns it.
        input_size: the side of the images in pixels.
    """
    method = cfg.DISTILLER.TYPE
    unread = unread_settings(cfg)
    if unread:
        yield f"note: {method} does not read {listed(unread, 3)}"
    left_out = untrained(distiller)
    if left_out:
        yield f"warning: {method}.get_learnable_parameters lacks {listed(left_out, 3)}, so they are not trained"
    if same_images(origin):
        yield "warning: the validation images are the training images, so accuracies say nothing about other images"
    networks = {"student": distiller.student}
    if distiller.teacher is not None and "logits" in distiller.teacher_needs:
        networks["teacher"] = distiller.teacher
    for role, network in networks.items():
        if returns_probabilities(network, input_size):
            yield f"warning: the outputs of the {role} are probabilities; losses expect logits, so remove its softmax"


def unread_settings(cfg: CfgNode) -> List[str]:
    """Return the keys of other methods' sections that differ from the defaults."""
    values, defaults = dict(leaves(to_dict(cfg))), dict(leaves(to_dict(CFG)))
    sections = tuple(f"{name}." for name in unread_sections(cfg.DISTILLER.TYPE))
    return [key for key, value in values.items() if key.startswith(sections) and value != defaults.get(key)]


def untrained(distiller: Distiller) -> List[str]:
    """Return the names of parameters that require gradients, but that the optimizer does not get."""
    trained = set(map(id, distiller.get_learnable_parameters()))
    return [
        name
        for name, parameter in distiller.named_parameters()
        if parameter.requires_grad and id(parameter) not in trained and not name.startswith("teacher.")
    ]


def returns_probabilities(model: nn.Module, input_size: int) -> bool:
    """Return whether each row of a model's outputs for noise has no negative value and the sum 1, as after a softmax.

    Args:
        model: a model that returns `(logits [B, N], features)`; its mode does not change.
        input_size: the side of the images in pixels.
    """
    with evaluation_mode(model):
        logits = model(noise(model, input_size))[0].float()
    return bool((logits >= 0).all()) and torch.allclose(logits.sum(1), logits.new_ones(()), atol=TOLERANCE)
