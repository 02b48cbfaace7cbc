"""Models of one's own: what they return, in the form that distillers read.

Such a model need not derive from `ClassifierModel`. It has MDistiller's `forward`, or returns logits alone. When it is
built, it runs once on two images of noise, which shows what it lacks.

Shapes: `B` batch, `H`/`W` pixels, `N` classes, `C` channels.
"""

from __future__ import annotations

import os
import traceback
from contextlib import contextmanager
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from ..errors import UserError, memory_shortage
from ._contract import ClassifierModel
from ._outputs import OUTPUTS, READ_LOGITS_ALONE, check_outputs, lacking, standard

TOLERANCE = 1e-4  # of a tensor's largest value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode without gradients, and every submodule back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class Findings(NamedTuple):
    """What a run of the model showed.

    Attributes:
        outputs: which of `OUTPUTS` it gives.
        stage_channels: channels of each map in `feats`, stem first.
        classifier: name of the `nn.Linear` that turns `pooled_feat` into the logits; `None` if none does.
        averages_final_map: whether `pooled_feat` is the average of `final_map` over its positions.
    """

    outputs: FrozenSet[str]
    stage_channels: List[int]
    classifier: Optional[str]
    averages_final_map: bool


class AdaptedModel(nn.Module):
    """The methods of the contract for a model that lacks them; `adapt` puts this class before the model's own."""

    adapted_name: str
    findings: Findings

    def forward(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Dict[str, Any]]:
        """Return `(logits [B, N], feats)`; see `OUTPUTS`."""
        return standard(super().forward(*args, **kwargs), self.adapted_name)

    def get_stage_channels(self) -> List[int]:
        """Return the channels of each map in `feats`, stem first."""
        return list(self.findings.stage_channels)

    def get_classifier(self) -> nn.Linear:
        """Return the linear layer that turns the pooled feature into logits.

        Raises:
            UserError: the model has none.
        """
        require_output("pooled_feat", self)
        if self.findings.classifier is None:
            raise UserError(
                f"{self.adapted_name} has no nn.Linear that turns its 'pooled_feat' into its logits, which the method"
                f" needs as the classifier; correct 'pooled_feat', or use a method that reads logits alone:"
                f" {READ_LOGITS_ALONE}"
            )
        classifier = self.get_submodule(self.findings.classifier)
        assert isinstance(classifier, nn.Linear)
        return classifier

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        """Return what the model's own method of that name does.

        Raises:
            NotImplementedError: it has none.
        """
        own = getattr(super(), "get_bn_before_relu", None)
        if own is None:
            raise NotImplementedError
        return own()


def adapt(model: Any, name: str, num_classes: int, input_size: int) -> nn.Module:
    """Return `model` itself, with the methods and outputs of the contract, as far as it can have them.

    A `ClassifierModel` stays as it is. Another model gets a subclass of its own class, as
    `torch.nn.utils.parametrize` does it: layers, weights and their names stay. So does the global random state.

    Args:
        name: of the model, for messages.
        num_classes: `N`.
        input_size: side of the images that it runs on, pixels.

    Raises:
        UserError: it cannot run on them, or it returns something else than the contract says.
    """
    if isinstance(model, (ClassifierModel, AdaptedModel)):
        return model
    if not isinstance(model, nn.Module):
        raise UserError(f"the constructor of {name} returns a {type(model).__name__}; expected a torch.nn.Module")
    adapted: Any = model
    own = type(model)
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    adapted.__class__ = type(own.__name__, (AdaptedModel, own), names)
    adapted.adapted_name = name
    first = next(adapted.parameters(), torch.zeros(()))
    noise = torch.randn(2, 3, input_size, input_size, generator=torch.Generator().manual_seed(0))
    image = noise.to(first.device, first.dtype)
    with evaluating(adapted), torch.random.fork_rng(devices=[]):
        with own_code(f"{name} cannot take two images of {input_size} px", "or set another DATASET.INPUT_SIZE"):
            logits, feats = adapted(image)
        check_outputs(name, logits, feats, num_classes)
        adapted.findings = Findings(
            outputs=frozenset(OUTPUTS) & frozenset(feats),
            stage_channels=[feat.shape[1] for feat in feats.get("feats", ())],
            classifier=_classifier(adapted, image) if "pooled_feat" in feats else None,
            averages_final_map={"final_map", "pooled_feat"} <= set(feats)
            and _equal(feats["final_map"].mean((2, 3)), feats["pooled_feat"]),
        )
    return adapted


def require_output(key: str, *models: nn.Module) -> None:
    """Raise a UserError unless each model gives `key`, one of `OUTPUTS`; those of the zoo do."""
    for model in models:
        if isinstance(model, AdaptedModel) and key not in model.findings.outputs:
            raise UserError(lacking(model.adapted_name, key))


def averages_final_map(model: nn.Module) -> bool:
    """Whether the pooled feature is known to be the average of the final map, unless the channels say otherwise."""
    return not isinstance(model, AdaptedModel) or model.findings.averages_final_map


@contextmanager
def own_code(what: str, remedy: str) -> Iterator[None]:
    """Turn what a user's own code raises into one line, `what (reason, file line); correct it, remedy`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if memory_shortage(error):
            raise
        ours, library = os.path.dirname(__file__), os.path.dirname(torch.__file__)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.dirname(frame.filename) != ours and not frame.filename.startswith(library)
        ]
        place = f", {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{what} ({type(error).__name__}: {reason}{place}); correct it, {remedy}") from error


def _classifier(model: Any, image: Tensor) -> Optional[str]:
    """Return the name of the last linear layer that turns the pooled feature of `image` into its logits.

    Where the model has a `get_classifier` of its own, the layer that this returns is the only choice.
    """
    logits, feats = model(image)
    own = getattr(super(AdaptedModel, model), "get_classifier", None)
    chosen = None if own is None else own()
    width = (feats["pooled_feat"].shape[1], logits.shape[1])
    for name, module in reversed(list(model.named_modules())):
        if (
            isinstance(module, nn.Linear)
            and (own is None or module is chosen)
            and (module.in_features, module.out_features) == width
            and _classifies(model, module, image)
        ):
            return name
    return None


def _classifies(model: nn.Module, linear: nn.Linear, image: Tensor) -> bool:
    """Whether the logits are `linear(pooled_feat)`, seen with random weights: those that begin at 0 show nothing."""
    before = [parameter.clone() for parameter in linear.parameters()]
    generator = torch.Generator().manual_seed(1)
    try:
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        logits, feats = model(image)
        return _equal(linear(feats["pooled_feat"]), logits)
    finally:
        for parameter, value in zip(linear.parameters(), before):
            parameter.copy_(value)


def _equal(given: Tensor, expected: Tensor) -> bool:
    return given.shape == expected.shape and bool(
        (given - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6)
    )
