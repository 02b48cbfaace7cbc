"""The classifier, its input and the stage maps in a traced graph (`torch.fx`) of a model that returns logits.

Shapes: `B` batch, `N` classes.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from functools import partial
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...errors import UserError
from .layout import find_layout
from .stages import Candidate, stages_of

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardtanh, F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.hardtanh),
    *("relu", "relu_", torch.relu_),
)
OUT_OF_PLACE: Dict[Any, Any] = {"relu_": "relu", torch.relu_: torch.relu}
POOLINGS = (
    *(nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d),
    *(F.adaptive_avg_pool2d, F.avg_pool2d, F.adaptive_max_pool2d, torch.mean, torch.amax),
    *("mean", "amax"),
)
SWITCHES = "its forward disables gradients or changes autocast, which a traced graph does not record"
WEIGHTED = (F.conv2d, torch.conv2d, F.linear)
PADDINGS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, F.pad)  # their sizes are not those of a stage


class NotTraceable(Exception):
    """A model whose graph is unknown, or does not show a classifier."""


class Choice(NamedTuple):
    """The nodes of a graph that become the outputs of a model.

    Attributes:
        logits, pooled: the classifier's output and input.
        classifier: the name of the classifier, an `nn.Linear`.
        stages: the stage maps, stem first; the last one is the final map.
    """

    logits: fx.Node
    pooled: fx.Node
    classifier: str
    stages: List[Candidate]


def trace(model: nn.Module, training: bool) -> fx.Graph:
    """Return the graph of a model in training or evaluation mode.

    Args:
        model: a copy that nothing else uses; tracing may leave traces in it.

    Raises:
        NotTraceable: its `forward` takes decisions that depend on the images, draws random numbers by itself, or
            switches gradients or autocast.
    """
    model.train(training)
    before, values = _random_state(), _plain_values(model)
    try:
        graph, under_autocast = (_Tracer(autocast).trace_in_mode(model) for autocast in (False, True))
    except NotTraceable:
        raise
    except Exception as error:  # the model's code meets placeholders instead of tensors, and may raise any type
        raise NotTraceable(str(error)) from error
    if str(graph) != str(under_autocast):
        raise NotTraceable(SWITCHES)
    if _random_state() != before:
        raise NotTraceable("its forward draws random numbers that a graph would repeat")
    if _plain_values(model) != values:
        raise NotTraceable("its forward changes attributes, such as a counter, which a traced graph does not record")
    return graph


class _Tracer(fx.Tracer):
    """A tracer that refuses a `forward` which switches gradients off, or autocast on or off.

    A graph does not record these switches.

    Args:
        autocast: whether to trace under autocast.
    """

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast
        self.devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    def trace_in_mode(self, model: nn.Module) -> fx.Graph:
        """Return the graph of a model."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for device in self.devices:
                stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=self.autocast))
            return self.trace(model)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        switched = any(torch.is_autocast_enabled(device) != self.autocast for device in self.devices)
        if switched or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise NotTraceable(SWITCHES)
        return super().create_node(*args, **kwargs)


def _random_state() -> Tuple[Any, ...]:
    of_numpy: Any = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy


def _plain_values(model: nn.Module) -> List[Dict[str, Any]]:
    """Return the numbers and strings that the modules keep as attributes, such as counters."""
    return [
        {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
        for module in model.modules()
    ]


def choose(
    model: nn.Module, graph: fx.Graph, image: Tensor, num_classes: int, features: Optional[Mapping[str, Any]] = None
) -> Choice:
    """Find the classifier and the stage maps of a model.

    Args:
        model: the model, in evaluation mode.
        graph: the graph of the model.
        image: example images, `[B, 3, H, W]`, from which shapes are read.
        num_classes: the number of classes, `N`.
        features: the names of modules by the keys of `USER_FEATURES`, which replace what would be found.

    Raises:
        NotTraceable: there is no classifier, or no map before it.
        UserError: `features` names a module that has no such output.
    """
    shapes = _Shapes(model, graph)
    shapes.run(image)
    given = dict(features or {})
    logits, name = _find_classifier(model, graph, num_classes, given.get("classifier"))
    pooled = logits.args[0]
    assert isinstance(pooled, fx.Node)
    if len(shapes.found.get(pooled, ())) != 2:
        raise NotTraceable(
            f"its classifier {name} takes {list(shapes.found.get(pooled, ()))}; expected one vector each"
        )
    candidates = _candidates(model, graph, shapes, pooled)
    stages = stages_of(candidates, given, partial(_named, graph))
    if not stages:
        raise NotTraceable("it computes no map on the way to its classifier")
    return Choice(logits, pooled, name, stages)


def before_activation(model: nn.Module, node: fx.Node) -> fx.Node:
    """Return the node before the activation function that `node` applies, or `node` if it applies none.

    An activation in place would change the map before it, so it is changed to one that is not.
    """
    if not _is_one_of(model, node, ACTIVATIONS):
        return node
    if node.op == "call_module" and getattr(model.get_submodule(str(node.target)), "inplace", False):
        model.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    node.target = OUT_OF_PLACE.get(node.target, node.target)
    return node.all_input_nodes[0]


def norm_before(model: nn.Module, node: fx.Node) -> Optional[str]:
    """Return the name of the BatchNorm that computes `node`, or a summand of it if `node` is a sum; else `None`."""
    adds = node.op in ("call_function", "call_method") and "add" in str(getattr(node.target, "__name__", node.target))
    for other in node.all_input_nodes if adds else [node]:
        if other.op == "call_module" and isinstance(model.get_submodule(str(other.target)), nn.BatchNorm2d):
            return str(other.target)
    return None


class _Shapes(fx.Interpreter):
    """Runs a graph and records the shape of each tensor, except parameters, in `found`."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.found: Dict[fx.Node, Sequence[int]] = {}
        self.carriers: Set[fx.Node] = set()  # nodes with a tensor as value, or several
        module: Any = self.module
        self._nodes = dict(zip(module.graph.nodes, graph.nodes))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op not in ("get_attr", "output"):
            self.found[self._nodes[n]] = tuple(value.shape)
        parts = value if isinstance(value, (tuple, list)) else [value]
        if any(isinstance(part, Tensor) for part in parts) and n.op != "get_attr":
            self.carriers.add(self._nodes[n])
        return value


def _find_classifier(model: nn.Module, graph: fx.Graph, num_classes: int, given: Optional[str]) -> Tuple[fx.Node, str]:
    node = next(n for n in graph.nodes if n.op == "output").args[0]
    while isinstance(node, fx.Node) and node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, nn.Linear) and module.out_features == num_classes:
            if given not in (None, node.target):
                break
            return node, str(node.target)
        if not isinstance(module, (nn.Identity, nn.Dropout)):
            break
        node = node.args[0]
    which = f"of the nn.Linear {given}" if given else f"of an nn.Linear with {num_classes} outputs"
    raise NotTraceable(f"its logits are not the output {which}")


def _candidates(model: nn.Module, graph: fx.Graph, shapes: _Shapes, pooled: fx.Node) -> List[Candidate]:
    """Return the maps that lie on every path from the image to the classifier, in the order of computation."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    nodes = [node for node in graph.nodes if node in shapes.carriers]
    found: List[Candidate] = []
    needed_until, num_weighted, side = -1, 0, None
    for node, following in zip(nodes, nodes[1:]):
        if order[node] >= order[pooled]:
            break
        num_weighted += _has_weights(model, node)
        is_only_value = needed_until <= order[node] and node.op != "placeholder"
        needed_until = max([needed_until, *(order[user] for user in node.users if user in shapes.carriers)])
        layout = find_layout(shapes.found.get(node, ()), side) if is_only_value else None
        if layout is None or not num_weighted or _is_one_of(model, node, PADDINGS):
            continue
        if _is_one_of(model, node, POOLINGS):
            if layout.side == 1:
                break
            continue
        side = layout.side
        depth = _common_length(_modules_around(node), _modules_around(following))
        found.append(Candidate(node, layout, depth, num_weighted <= 1))
    return found


def _has_weights(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a layer with weights, such as a convolution, and not only a norm."""
    if node.op == "call_module":
        parameters = model.get_submodule(str(node.target)).parameters()
        return any(parameter.dim() > 1 for parameter in parameters)  # a norm has one dimension
    return node.op == "call_function" and node.target in WEIGHTED


def _modules_around(node: fx.Node) -> List[str]:
    """Return the names of the modules that compute a node, outermost first."""
    return [name.partition("@")[0] for name in node.meta.get("nn_module_stack", {})]  # `@1`: its second call


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    return next((i for i, pair in enumerate(zip(first, second)) if pair[0] != pair[1]), min(len(first), len(second)))


def _named(graph: fx.Graph, name: str, candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that is the output of the module `name`."""
    inside = [node for node in graph.nodes if name in _modules_around(node)]
    found = [candidate for candidate in candidates if inside and candidate.key is inside[-1]]
    if not found:
        raise UserError(f"{name!r} {'gives no map on which all later layers depend' if inside else 'is never called'}")
    return found[0]


def _is_one_of(model: nn.Module, node: fx.Node, kinds: Tuple[Any, ...]) -> bool:
    if node.op == "call_module":
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        return isinstance(model.get_submodule(str(node.target)), types)
    return node.op in ("call_function", "call_method") and node.target in kinds
