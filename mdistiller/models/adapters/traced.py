"""A model that returns logits alone, with the maps and the feature that its traced graph shows.

Shapes: `B` batch, `N` classes, `C` channels, `H`/`W` height and width.
"""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, fx, nn

from .._adapt import AdaptedModel, evaluation_mode, examine, insert, is_equal, noise
from .graphs import Choice, NotTraceable, before_activation, choose, norm_before, trace
from .layout import Layout


class TracedModel(AdaptedModel):
    """A model whose `forward` is that of its traced graph, which also returns maps and the classifier's input.

    Attributes:
        functions: the functions that compute `forward` in evaluation mode and in training mode.
        tails: the functions from the final map to `(logits, pooled)` in both modes; empty if the final map does not
            decide the pooled feature.
        layouts: the layouts of the stage maps.
        norms: the names of the BatchNorms before the stages' activations; `None` where there is none.
    """

    functions: Dict[bool, Callable[..., Any]]
    tails: Dict[bool, Callable[..., Any]]
    layouts: List[Layout]
    norms: List[Optional[str]]

    def forward(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Dict[str, Any]]:
        out = self.functions[self.training](self, *args, **kwargs)
        feats, preacts = (
            [layout.to_map(x) for layout, x in zip(self.layouts, out[key])] for key in ("feats", "preact_feats")
        )
        return out["logits"], {
            "feats": feats,
            "preact_feats": preacts,
            "final_map": feats[-1],
            "pooled_feat": out["pooled_feat"],
        }

    def forward_tail(self, final_map: Tensor) -> Tuple[Tensor, Tensor]:
        return self.tails[self.training](self, self.layouts[-1].from_map(final_map))

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        modules = [name and self.get_submodule(name) for name in self.norms[1:]]
        return [module for module in modules if isinstance(module, nn.BatchNorm2d)]


def trace_outputs(
    model: nn.Module, name: str, num_classes: int, input_size: int, features: Optional[Mapping[str, Any]] = None
) -> TracedModel:
    """Add the outputs of `ClassifierModel` to a model in place, and return it.

    Args:
        model: the model, which returns logits alone.
        name: its name, given in error messages.
        num_classes: the number of classes, `N`.
        input_size: the side in pixels of the images to run it on.
        features: see `graphs.choose`.

    Raises:
        NotTraceable: the graph cannot be known, or shows no such outputs. The model is unchanged.
        UserError: `features` names a module that has no such output.
    """
    try:
        scratch = copy.deepcopy(model)  # tracing may leave placeholders in it
    except (TypeError, RuntimeError) as error:  # such as of a lock, or of a tensor with a history
        raise NotTraceable(f"it cannot be copied: {error}") from error
    functions: Dict[bool, Callable[..., Any]] = {}
    tails: Dict[bool, Optional[Callable[..., Any]]] = {}
    image = noise(model, input_size)
    with torch.random.fork_rng(devices=[]):
        for training in (True, False):
            graph = trace(scratch, training)
            _check_attributes(model, graph)
            with evaluation_mode(scratch):
                choice = choose(scratch, graph, image, num_classes, features)
            preacts = [before_activation(scratch, stage.key) for stage in choice.stages]
            norms = [norm_before(scratch, node) for node in preacts]
            tails[training] = _tail(scratch, graph, choice)
            functions[training] = _forward(scratch, graph, choice, preacts)
    _check_equal(model, functions[False], image)
    _copy_inplace(scratch, model)
    whole = None not in tails.values()
    traced = insert(
        model,
        TracedModel,
        name,
        functions=functions,
        tails=tails if whole else {},
        has_tail=whole,
        layouts=[stage.layout for stage in choice.stages],
        norms=norms,
    )
    examine(traced, num_classes, input_size, choice.classifier)
    return traced


def _check_attributes(model: nn.Module, graph: fx.Graph) -> None:
    """Raise NotTraceable if a graph reads tensors that `forward` creates, which tracing keeps in the traced copy."""
    for node in graph.nodes:
        if node.op == "get_attr":
            try:
                attrgetter(node.target)(model)
            except AttributeError:
                raise NotTraceable("its forward creates a tensor, which a traced graph keeps as a constant") from None


def _forward(model: nn.Module, graph: fx.Graph, choice: Choice, preacts: List[fx.Node]) -> Callable[..., Any]:
    """Return a function `(model, image)` that computes the chosen nodes; `graph` changes."""
    graph.erase_node(next(node for node in graph.nodes if node.op == "output"))
    graph.output(
        {
            "logits": choice.logits,
            "feats": [stage.key for stage in choice.stages],
            "preact_feats": preacts,
            "pooled_feat": choice.pooled,
        }
    )
    return _compiled(model, graph)


def _tail(model: nn.Module, graph: fx.Graph, choice: Choice) -> Optional[Callable[..., Any]]:
    """Return a function `(model, final map)` that computes `(logits, pooled)`, or `None` if they need more."""
    if not choice.stages[-1].layout.is_invertible:
        return None
    final = choice.stages[-1].key
    tail = fx.Graph()
    copies = {final: tail.placeholder("final_map")}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node.op in ("placeholder", "output") or (node._input_nodes and node < final):
                raise NotTraceable
            copies[node] = tail.node_copy(node, copy_of)
        return copies[node]

    try:
        tail.output((copy_of(choice.logits), copy_of(choice.pooled)))
    except NotTraceable:
        return None
    return _compiled(model, tail)


def _compiled(model: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    return type(fx.GraphModule(model, graph)).forward


def _check_equal(model: nn.Module, function: Callable[..., Any], image: Tensor) -> None:
    """Raise NotTraceable if the graph computes other logits than the model, for two images or for three."""
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        for images in (image, torch.cat([image, image[:1].flip(3)])):
            try:
                logits = function(model, images)["logits"]
            except (RuntimeError, AttributeError, TypeError) as error:
                raise NotTraceable(str(error)) from error
            if not is_equal(logits, model(images)):
                raise NotTraceable("its graph computes other logits than its forward")


def _copy_inplace(source: nn.Module, target: nn.Module) -> None:
    """Copy the attribute `inplace` of all modules, which `before_activation` may have changed."""
    for mine, theirs in zip(target.modules(), source.modules()):
        if isinstance(getattr(mine, "inplace", None), bool):
            mine.inplace = theirs.inplace
