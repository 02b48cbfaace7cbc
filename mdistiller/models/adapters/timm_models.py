"""timm's models: `timm/<name>`, such as `timm/convnext_tiny` or `timm/vit_small_patch16_224.dino`.

Shapes: `B` batch, `N` classes, `C` channels, `H`/`W` height and width, `T` tokens.
"""

from __future__ import annotations

import inspect
from typing import Any, Dict, List, Mapping, Optional, Tuple

from torch import Tensor, nn

from ...errors import UserError, did_you_mean, missing_libraries, one_line
from .._adapt import AdaptedModel, evaluation_mode, examine, insert, is_equal, noise, running_on, user_code_errors
from .layout import tokens_to_map
from .own_input import InputSpec
from .stages import NUM_STAGES

OLD = "timm {version} is too old, its {name} has no forward_intermediates; run: pip install --upgrade timm"
SETTING = "{key} is no argument for DISTILLER.TEACHER_ARGS or STUDENT_ARGS; {remedy}"
RESERVED = {
    "pretrained": "set DISTILLER.TEACHER_WEIGHTS or STUDENT_WEIGHTS to pretrained",
    "checkpoint_path": "give the file as DISTILLER.TEACHER_WEIGHTS or STUDENT_WEIGHTS",
    # it names files and addresses, and arguments may come from somebody's checkpoint
    "pretrained_cfg": "give the weights as DISTILLER.TEACHER_WEIGHTS or STUDENT_WEIGHTS",
    "pretrained_cfg_overlay": "give the weights as DISTILLER.TEACHER_WEIGHTS or STUDENT_WEIGHTS",
    "features_only": "the maps are read from the whole model",
}
LOGITS = "its outputs in timm are not those of a map and an nn.Linear: {reason}"


class TimmModel(AdaptedModel):
    """A model of timm: the maps of `forward_intermediates`, and the feature of `forward_head`.

    Attributes:
        intermediates: the arguments of `forward_intermediates`.
        classifier_path: the name of the classifier.
        num_prefix: the number of class and register tokens.
        channels_last: whether its maps are `[B, H, W, C]`.
    """

    intermediates: Dict[str, Any]
    classifier_path: str
    num_prefix: int
    channels_last: bool

    def forward(self, x: Tensor) -> Tuple[Tensor, Dict[str, Any]]:
        model: Any = self
        last, maps = model.forward_intermediates(x, **self.intermediates)
        pooled = model.forward_head(last, pre_logits=True)
        if last.dim() == 3:
            final_map = tokens_to_map(last, self.num_prefix, maps[-1].shape[2])
        else:
            final_map = last.permute(0, 3, 1, 2) if self.channels_last else last
        return model.get_submodule(self.classifier_path)(pooled), {
            "feats": list(maps),
            "preact_feats": list(maps),
            "final_map": final_map,
            "pooled_feat": pooled,
        }

    def forward_tail(self, final_map: Tensor) -> Tuple[Tensor, Tensor]:
        model: Any = self
        last = final_map.permute(0, 2, 3, 1) if self.channels_last else final_map
        pooled = model.forward_head(last, pre_logits=True)
        return model.get_submodule(self.classifier_path)(pooled), pooled


def library() -> Any:
    """Return the module timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        if error.name != "timm":
            raise UserError(f"timm cannot be imported ({error}); repair it: pip install --upgrade timm") from error
        raise missing_libraries("a model of timm", "timm") from None
    return timm


def check_name(name: str) -> None:
    """Raise a UserError if timm is missing, or has no model `name` or no weights of its tag."""
    timm = library()
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise UserError(f"timm has no model {name!r}{did_you_mean(model, timm.list_models())}")
    if tag:
        from timm.models import get_pretrained_cfg

        try:
            get_pretrained_cfg(name)
        except RuntimeError:
            known = timm.list_pretrained(f"{model}.*")
            raise UserError(f"timm has no weights {name!r}{did_you_mean(name, known)}") from None


def build(name: str, num_classes: int, input_size: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the model with fresh weights, called with `arguments`.

    Raises:
        UserError: timm does not accept them.
    """
    words = _arguments_of_constructor(name, input_size, arguments)
    what = f"timm/{name} refuses images of {input_size} px with its arguments {dict(arguments)}"
    with user_code_errors(what, "or see its arguments in timm's documentation"):
        return library().create_model(name, **words, num_classes=num_classes)


def pretrained(name: str, input_size: int, arguments: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Return timm's own weights, downloaded if they are not in the hub's folder yet.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    if not _cfg(name).has_weights:
        raise UserError(f"timm has no weights of {name}; give a file, or another name of `timm.list_pretrained()`")
    words = _arguments_of_constructor(name, input_size, arguments)
    try:
        return library().create_model(name, **words, pretrained=True).state_dict()
    except Exception as error:  # of the network, the disk or the file
        reason = one_line(error)
        raise UserError(
            f"timm's weights of {name} cannot be downloaded ({reason}); connect to the internet, or give a file"
        ) from error


def own_input(name: str) -> InputSpec:
    """Return the `InputSpec` of the images that timm's weights were trained on."""
    cfg = _cfg(name)
    return InputSpec(cfg.input_size[-1], tuple(cfg.mean), tuple(cfg.std), cfg.interpolation or "bicubic")


def _cfg(name: str) -> Any:
    check_name(name)
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(name)


def _arguments_of_constructor(name: str, input_size: int, given: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the given arguments, and the input size for a model that has a fixed one.

    Raises:
        UserError: an argument is a setting of its own.
    """
    for key, remedy in RESERVED.items():
        if key in given:
            raise UserError(SETTING.format(key=key, remedy=remedy))
    sized = {"img_size": input_size} if _cfg(name).fixed_input_size else {}
    return {**sized, **given}


def with_outputs(model: nn.Module, name: str, num_classes: int, input_size: int) -> nn.Module:
    """Add the outputs of `ClassifierModel` to a model of timm in place, and return it.

    A model whose logits are not those of an `nn.Linear` on one feature gives logits alone.

    Raises:
        UserError: the model cannot take images of `input_size` pixels, or timm is too old.
    """
    timm_model: Any = model
    if not hasattr(model, "forward_intermediates"):
        raise UserError(OLD.format(version=library().__version__, name=name))
    reason = _why_no_classifier(timm_model, name, num_classes, input_size)
    if reason:
        plain = insert(model, AdaptedModel, name, why_incomplete=LOGITS.format(reason=reason))
        examine(plain, num_classes, input_size)
        return plain
    classifier = timm_model.get_classifier()
    with evaluation_mode(model):
        last = timm_model.forward_features(noise(model, input_size))
    adapted = insert(
        model,
        TimmModel,
        name,
        intermediates=_arguments(timm_model),
        num_prefix=getattr(model, "num_prefix_tokens", 0),
        channels_last=last.dim() == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC",
        has_tail=last.dim() == 4,
        classifier_path=next(path for path, module in model.named_modules() if module is classifier),
    )
    examine(adapted, num_classes, input_size, adapted.classifier_path)
    return adapted


def _why_no_classifier(model: Any, name: str, num_classes: int, input_size: int) -> str:
    """Return why the logits are not `classifier(pooled feature)`, or an empty string if they are."""
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return f"get_classifier() gives a {type(classifier).__name__}"
    with evaluation_mode(model):
        image = noise(model, input_size)
        with running_on(name, input_size):
            logits = model(image)
            last = model.forward_features(image)
            pooled = model.forward_head(last, pre_logits=True)
        if pooled.dim() != 2 or not is_equal(classifier(pooled), logits):
            return "its logits are not those of get_classifier() for forward_head(pre_logits=True)"
        if last.dim() == 3:
            _, maps = model.forward_intermediates(image, **_arguments(model))
            if last.shape[1] - getattr(model, "num_prefix_tokens", 0) != maps[-1].shape[2] * maps[-1].shape[3]:
                return "its last tokens are not those of a map"
    return ""


def _arguments(model: Any) -> Dict[str, Any]:
    """Return the arguments of `forward_intermediates` for maps `[B, C, H, W]` of the stages."""
    arguments: Dict[str, Any] = {}
    accepted = inspect.signature(model.forward_intermediates).parameters
    if "output_fmt" in accepted:
        arguments["output_fmt"] = "NCHW"
    blocks = getattr(model, "blocks", None)
    if blocks is not None and _is_isotropic(model):
        arguments["indices"] = spaced(len(blocks))
    return arguments


def _is_isotropic(model: Any) -> bool:
    """Whether all blocks give maps of one size and one width, as in a vision transformer."""
    info: Optional[List[Dict[str, Any]]] = getattr(model, "feature_info", None)
    if not isinstance(info, list) or len(info) != len(model.blocks):
        return False
    return len({(entry.get("num_chs"), entry.get("reduction")) for entry in info}) == 1


def spaced(num_blocks: int) -> List[int]:
    """Return the first block, as the stem, and `NUM_STAGES` evenly spaced blocks, the last one included."""
    return sorted({0, *(max(0, (i + 1) * num_blocks // NUM_STAGES - 1) for i in range(NUM_STAGES))})
