"""Models from elsewhere with the outputs and methods that distillers read.

Such a model does not derive from `ClassifierModel`. `insert` adds the missing methods to it. `examine` runs it on two
images of noise, which shows which outputs it has. The modules of `adapters/` say how each kind of model gives them.

Shapes: `B` batch, `H`/`W` pixels, `N` classes, `C` channels.
"""

from __future__ import annotations

import os
import traceback
from contextlib import contextmanager
from typing import Any, ContextManager, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple, Type, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError, memory_shortage
from ._outputs import LOGITS_ONLY_METHODS, OUTPUTS, check_outputs, missing_output, standardize_output

TOLERANCE = 1e-4  # relative to a tensor's largest value


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Disable gradients and put `model` in evaluation mode; afterwards restore the mode of every submodule."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class Findings(NamedTuple):
    """Properties of a model, found by running it.

    Attributes:
        outputs: the keys of `OUTPUTS` that it returns.
        stage_channels: the number of channels of each map in `feats`, stem first.
        classifier: the name of the `nn.Linear` that maps `pooled_feat` to the logits; `None` if there is none.
        averages_final_map: whether `pooled_feat` is the average of `final_map` over its positions.
    """

    outputs: FrozenSet[str]
    stage_channels: List[int]
    classifier: Optional[str]
    averages_final_map: bool


Mixin = TypeVar("Mixin", bound="AdaptedModel")


class AdaptedModel(nn.Module):
    """The methods of `ClassifierModel` for another model; `insert` puts this class before the model's own class.

    Attributes:
        adapted_name: the name that the user gave.
        findings: what `examine` found.
        why_incomplete: the reason why outputs are missing, given in error messages; empty if the model's own `forward`
            returns them.
        has_tail: whether `forward_tail` exists.
    """

    adapted_name: str
    findings: Findings
    why_incomplete = ""
    has_tail = False

    def forward(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Dict[str, Any]]:
        """Return `(logits [B, N], feats)`; see `OUTPUTS`."""
        return standardize_output(super().forward(*args, **kwargs), self.adapted_name, self.why_incomplete)

    def forward_tail(self, final_map: Tensor) -> Tuple[Tensor, Tensor]:
        """Return `(logits [B, N], pooled_feat [B, C])` of a final map `[B, C', H, W]`, if `has_tail`."""
        raise NotImplementedError

    def get_stage_channels(self) -> List[int]:
        """Return the channels of each map in `feats`, stem first."""
        return list(self.findings.stage_channels)

    def get_classifier(self) -> nn.Linear:
        """Return the linear layer that maps the pooled feature to the logits.

        Raises:
            UserError: the model has no such layer.
        """
        require_output("pooled_feat", self)
        if self.findings.classifier is None:
            raise UserError(
                f"{self.adapted_name} has no nn.Linear that turns its 'pooled_feat' into its logits, which the method"
                f" needs as the classifier; correct 'pooled_feat', or use a method that reads only logits:"
                f" {LOGITS_ONLY_METHODS}"
            )
        classifier = self.get_submodule(self.findings.classifier)
        assert isinstance(classifier, nn.Linear)
        return classifier

    def get_bn_before_relu(self) -> List[nn.BatchNorm2d]:
        """Return the result of the model's own `get_bn_before_relu`.

        Raises:
            NotImplementedError: the model does not define it.
        """
        own = getattr(super(), "get_bn_before_relu", None)
        if own is None:
            raise NotImplementedError
        return own()


def insert(model: nn.Module, mixin: Type[Mixin], name: str, **attributes: Any) -> Mixin:
    """Put `mixin` before the class of `model`, in place, and return the model.

    The class is replaced by a subclass of it, as in `torch.nn.utils.parametrize`. Layers, weights and their names do
    not change.

    Args:
        model: the model.
        mixin: the class whose methods come first.
        name: the name of the model, given in error messages.
        attributes: the attributes of the new class.
    """
    inserted: Any = model
    own = type(model)
    shown = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    inserted.__class__ = type(own.__name__, (mixin, own), {**attributes, **shown, "adapted_name": name})
    return inserted


def noise(model: nn.Module, input_size: int, num_images: int = 2) -> Tensor:
    """Return images `[num_images, 3, input_size, input_size]` of fixed noise, on the device of `model`."""
    first = next(model.parameters(), torch.zeros(()))
    images = torch.randn(num_images, 3, input_size, input_size, generator=torch.Generator().manual_seed(0))
    return images.to(first.device, first.dtype)


def examine(model: AdaptedModel, num_classes: int, input_size: int, classifier: Optional[str] = None) -> None:
    """Run `model` on noise and set its `findings`; modes and the global random state do not change.

    Args:
        model: the model.
        num_classes: the number of classes, `N`.
        input_size: the side in pixels of the images to run it on.
        classifier: the name of its classifier; `None` to find it.

    Raises:
        UserError: the model cannot run on these images, or returns something other than `OUTPUTS` describes.
    """
    name, image = model.adapted_name, noise(model, input_size)
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        with running_on(name, input_size):
            logits, feats = model(image)
        check_outputs(name, logits, feats, num_classes)
        if classifier is None and "pooled_feat" in feats:
            classifier = _find_classifier(model, image)
        model.findings = Findings(
            outputs=frozenset(OUTPUTS) & frozenset(feats),
            stage_channels=[feat.shape[1] for feat in feats.get("feats", ())],
            classifier=classifier,
            averages_final_map={"final_map", "pooled_feat"} <= set(feats)
            and is_equal(feats["final_map"].mean((2, 3)), feats["pooled_feat"]),
        )


def require_output(key: str, *models: nn.Module) -> None:
    """Raise a UserError if a model does not return `key`, one of `OUTPUTS`; every `ClassifierModel` returns it."""
    for model in models:
        if isinstance(model, AdaptedModel) and key not in model.findings.outputs:
            raise UserError(missing_output(model.adapted_name, key, model.why_incomplete))


def averages_final_map(model: nn.Module) -> bool:
    """Whether the pooled feature is the average of the final map.

    It returns `True` for every `ClassifierModel`, without a check. If such a model has layers between the final map and
    the pooling, the caller has to detect them by `forward_map` or by the number of channels.
    """
    return not isinstance(model, AdaptedModel) or model.findings.averages_final_map


@contextmanager
def user_code_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn an error in a user's code into a UserError, `what (reason, file line); correct it, remedy`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the latter of a script that reads its command line when it is imported
        if memory_shortage(error):
            raise
        ours, library = os.path.dirname(__file__), os.path.dirname(torch.__file__)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith(ours) and not frame.filename.startswith(library)
        ]
        place = f", {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{what} ({type(error).__name__}: {reason}{place}); correct it, {remedy}") from error


def running_on(name: str, input_size: int) -> ContextManager[None]:
    """Turn an error of the model `name` into a UserError that it cannot take images of `input_size` pixels."""
    return user_code_errors(f"{name} cannot take two images of {input_size} px", "or set another DATASET.INPUT_SIZE")


def _find_classifier(model: Any, image: Tensor) -> Optional[str]:
    """Return the name of the last linear layer that maps the pooled feature of `image` to its logits.

    If the model defines `get_classifier`, only the layer that it returns is tried.
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
    """Whether the logits are `linear(pooled_feat)`, tried with random weights, because zero weights prove nothing."""
    before = [parameter.clone() for parameter in linear.parameters()]
    generator = torch.Generator().manual_seed(1)
    try:
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        logits, feats = model(image)
        return is_equal(linear(feats["pooled_feat"]), logits)
    finally:
        for parameter, value in zip(linear.parameters(), before):
            parameter.copy_(value)


def is_equal(given: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    return given.shape == expected.shape and bool(
        (given - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6)
    )
