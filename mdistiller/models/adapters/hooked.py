"""A model that returns logits alone and whose graph is unknown: its modules' outputs, taken by hooks.

The hooks exist only while `forward` runs, so the model can be copied and saved.

Shapes: `B` batch, `N` classes, `C` channels, `H`/`W` height and width.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ...errors import UserError
from .._adapt import AdaptedModel, evaluation_mode, examine, insert, is_equal, noise, running_on
from .._outputs import logits_of
from .graphs import NotTraceable
from .layout import Layout, find_layout
from .stages import Candidate, stages_of

PADDINGS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
POOLINGS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)


class HookedModel(AdaptedModel):
    """A model whose `forward` also returns the outputs of some of its modules, and the classifier's input.

    Attributes:
        classifier_path: name of the classifier.
        stages: names of the modules that compute the stage maps, with the layouts of their outputs.
    """

    classifier_path: str
    stages: List[Tuple[str, Layout]]

    def forward(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Dict[str, Any]]:
        taken: Dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: Tuple[Any, ...], output: Tensor) -> None:
                taken[name] = inputs[0] if name == self.classifier_path else output

            return hook

        names = [self.classifier_path, *(name for name, _ in self.stages)]
        handles = [self.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            logits, _ = super().forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in names if name not in taken]
        if missing:
            raise UserError(
                f"{self.adapted_name} does not call its module {missing[0]} each time; name modules that it always"
                " calls in DISTILLER.STUDENT_FEATURES or TEACHER_FEATURES"
            )
        feats = [layout.to_map(taken[name]) for name, layout in self.stages]
        return logits, {
            "feats": feats,
            "preact_feats": feats,
            "final_map": feats[-1],
            "pooled_feat": taken[self.classifier_path],
        }


class _Call(NamedTuple):
    """One call of a module: its name, its input if that is a tensor, and its output."""

    name: str
    module: nn.Module
    input: Optional[Tensor]
    output: Any


def hook_outputs(
    model: nn.Module, name: str, num_classes: int, input_size: int, features: Optional[Mapping[str, Any]] = None
) -> HookedModel:
    """Add the outputs of `ClassifierModel` to a model in place, and return it.

    Args:
        model: the model, which returns logits alone.
        name: its name, given in error messages.
        num_classes: the number of classes, `N`.
        input_size: the side in pixels of the images to run it on.
        features: the names of modules by the keys of `USER_FEATURES`, which replace what would be found.

    Raises:
        NotTraceable: there is no classifier, or no map before it. The model is unchanged.
        UserError: `features` names a module that has no such output.
    """
    given = dict(features or {})
    with evaluation_mode(model), torch.random.fork_rng(devices=[]), running_on(name, input_size):
        calls, logits = _record(model, noise(model, input_size))
    classifier = _find_classifier(calls, logits, given.get("classifier"), num_classes)
    candidates = _candidates(calls, calls.index(classifier))
    stages = stages_of(candidates, given, _named)
    if not stages:
        raise NotTraceable("no module of it computes a map on the way to its classifier")
    hooked = insert(
        model,
        HookedModel,
        name,
        classifier_path=classifier.name,
        stages=[(stage.key, stage.layout) for stage in stages],
    )
    examine(hooked, num_classes, input_size, classifier.name)
    return hooked


def _record(model: nn.Module, image: Tensor) -> Tuple[List[_Call], Tensor]:
    """Return the calls of all modules that are called once, in the order in which they end, and the logits."""
    calls: List[_Call] = []

    def make_hook(name: str) -> Any:
        def hook(module: nn.Module, inputs: Tuple[Any, ...], output: Any) -> None:
            first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            calls.append(_Call(name, module, first, output))

        return hook

    handles = [module.register_forward_hook(make_hook(name)) for name, module in model.named_modules() if name]
    try:
        logits = logits_of(model(image))
    finally:
        for handle in handles:
            handle.remove()
    names = [call.name for call in calls]
    return [call for call in calls if names.count(call.name) == 1], logits


def _find_classifier(calls: List[_Call], logits: Tensor, given: Optional[str], num_classes: int) -> _Call:
    for call in reversed(calls):
        if (
            isinstance(call.module, nn.Linear)
            and given in (None, call.name)
            and call.input is not None
            and call.input.dim() == 2
            and isinstance(call.output, Tensor)
            and is_equal(call.output, logits)
        ):
            return call
    which = f"of the nn.Linear {given}" if given else f"of an nn.Linear with {num_classes} outputs"
    raise NotTraceable(f"its logits are not the output {which}")


def _candidates(calls: List[_Call], end: int) -> List[Candidate]:
    """Return the maps that modules compute before call number `end`, up to the pooling of the last one."""
    found: List[Candidate] = []
    num_before_pooling = 0  # number of candidates before the last pooling to 1x1
    num_weighted, side = 0, None
    for call in calls[:end]:
        num_weighted += any(parameter.dim() > 1 for parameter in call.module.parameters(recurse=False))
        shape = call.output.shape if isinstance(call.output, Tensor) else ()
        layout = find_layout(shape, side)
        if layout is None or not num_weighted or isinstance(call.module, PADDINGS):
            continue
        if isinstance(call.module, POOLINGS):
            num_before_pooling = len(found) if layout.side == 1 else num_before_pooling
            continue
        side = layout.side
        found.append(Candidate(call.name, layout, call.name.count("."), num_weighted <= 1))
    if num_before_pooling and all(candidate.layout.side == 1 for candidate in found[num_before_pooling:]):
        return found[:num_before_pooling]
    return found


def _named(path: str, candidates: Sequence[Candidate]) -> Candidate:
    found = [candidate for candidate in candidates if candidate.key == path]
    if not found:
        raise UserError(f"{path!r} is no module that gives one map before the classifier")
    return found[0]
