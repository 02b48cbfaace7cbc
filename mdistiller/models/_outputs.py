"""The outputs of a model in the form that distillers read, and the messages about any other form.

Shapes: `B` batch, `H`/`W` pixels, `N` classes, `C` channels.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

from torch import Tensor

from ..errors import UserError

OUTPUTS = {
    "feats": "the list of its stages' activated maps [B, C, H, W], stem first",
    "preact_feats": "the list of the maps of 'feats' before their activation",
    "final_map": "the last stage's activated map [B, C, H, W], by default the last one of 'feats'",
    "pooled_feat": "the feature [B, C] that its classifier consumes",
}
NUM_DIMS = {"feats": 4, "preact_feats": 4, "final_map": 4, "pooled_feat": 2}
EXPECTED = 'logits [B, N], or (logits, {"feats": [...], "preact_feats": [...], "pooled_feat": ...})'
LOGITS_ONLY_METHODS = "CTKD, DIST, DKD, KD, MLKD, RLD, WTTM"


class _Incomplete(Dict[str, Any]):
    """The outputs of a model that lacks some of `OUTPUTS`; reading a missing one raises a UserError."""

    def __init__(self, feats: Dict[str, Any], name: str, why: str) -> None:
        super().__init__(feats)
        self.name = name
        self.why = why

    def __missing__(self, key: str) -> Any:
        if key not in OUTPUTS:
            raise KeyError(key)
        raise UserError(missing_output(self.name, key, self.why))


def missing_output(name: str, key: str, why: str = "") -> str:
    """Return the error message for a model `name` that does not return `key`, one of `OUTPUTS`.

    Args:
        why: the reason why it does not, if that is known.
    """
    reason = f" ({why})" if why else ""
    return (
        f"{name} gives no {key!r}, {OUTPUTS[key]}{reason}; have its forward return (logits, {{{key!r}: ...}}),"
        f" or use a method that reads only logits: {LOGITS_ONLY_METHODS}"
    )


def standardize_output(output: Any, name: str, why: str = "") -> Tuple[Tensor, Dict[str, Any]]:
    """Return the output of the model `name` as `(logits, feats)`, with `final_map` added if `feats` has maps.

    Args:
        output: what `forward` returned; an object with `logits`, such as one of Hugging Face, counts as logits.
        name: the name of the model, given in error messages.
        why: the reason why it gives no more than logits, given in error messages.

    Raises:
        UserError: the output is not in the form `EXPECTED`.
    """
    output = logits_of(output)
    if isinstance(output, Tensor):
        return output, _Incomplete({}, name, why)
    pair = isinstance(output, (tuple, list)) and len(output) == 2
    if not (pair and isinstance(output[0], Tensor) and isinstance(output[1], dict)):
        raise UserError(f"{name} returns {_in_words(output)}; expected {EXPECTED}")
    logits, feats = output
    maps = feats.get("feats")
    if "final_map" not in feats and isinstance(maps, (list, tuple)) and maps:
        feats = {**feats, "final_map": maps[-1]}
    return logits, feats if OUTPUTS.keys() <= feats.keys() else _Incomplete(feats, name, why)


def logits_of(output: Any) -> Any:
    """Return the attribute `logits` of an output that has one, such as Hugging Face's; any other output unchanged."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output


def check_outputs(name: str, logits: Tensor, feats: Dict[str, Any], num_classes: int) -> None:
    """Check the shapes of the outputs of the model `name` for two images.

    Raises:
        UserError: a shape differs from the one in `OUTPUTS`.
    """
    if tuple(logits.shape) != (2, num_classes):
        raise UserError(
            f"{name} gives logits {list(logits.shape)} for two images; expected [2, {num_classes}]: give its classifier"
            f" {num_classes} outputs, or, for a teacher with other classes, set DISTILLER.TEACHER_CLASSES"
        )
    for key in filter(feats.__contains__, OUTPUTS):
        entries = feats[key] if key in ("feats", "preact_feats") else [feats[key]]
        if not (
            isinstance(entries, (list, tuple))
            and all(isinstance(e, Tensor) and e.dim() == NUM_DIMS[key] and len(e) == 2 for e in entries)
        ):
            raise UserError(
                f"{name} gives {key!r} as {_in_words(feats[key])} for two images; expected {OUTPUTS[key]}:"
                " correct it, or leave it out"
            )


def _in_words(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    kind = f"a {type(output).__name__}"
    if isinstance(output, dict):
        return f"{kind} with the keys {', '.join(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"{kind} of {', '.join(_in_words(entry) for entry in output) or 'nothing'}"
    return kind
