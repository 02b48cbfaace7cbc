"""The model card: what an export is, where it comes from, how good it is and what it costs. Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

from .. import __version__
from ..distillers import has_teacher
from ..engine.evaluation.cost import deployed_cost
from ..errors import printable
from ..models import library_of, parts_of
from ..models.adapters.given_models import PREFIX
from .proof import Proof
from .source import Source

MAX_CLASSES = 100  # named in a card
NOT_STATED = "not stated; ask who trained it before you pass this model on (`--teacher-license`)"


def model_card(source: Source, title: str, precision: str, teacher_license: str = "", form: str = "safetensors") -> str:
    """Return the card without the proof.

    Folders of this machine do not appear in it.

    Args:
        source: the student.
        title: the name of the file.
        precision: `float32`, `float16` or `int8`.
        teacher_license: the license under which the teacher's weights may be used.
        form: the format: `onnx`, `torch` or `safetensors`. Checkpoints count as `safetensors`.
    """
    info, head, config = source.info, source.student.head, source.checkpoint["config"]
    section = config.get("DISTILLER", {})
    arch = shown_model(source.checkpoint["arch"])
    cost = deployed_cost(source.student.backbone, head, info.input_size)
    accuracy = source.checkpoint["accuracy"]
    deployed = f"top-1 {accuracy['deployed_top1']:.2f} %"
    if "deployed_top5" in accuracy:
        deployed += f", top-5 {accuracy['deployed_top5']:.2f} %"
    ending = f"with the {head.kind} head and the teacher's classifier" if head else "with its own classifier"
    method = str(section.get("TYPE", ""))
    training = {"": "", "NONE": ", trained by cross-entropy"}.get(method, f", trained by {_text(method)}")
    teacher = _text(shown_model(str(section["TEACHER"]))) if has_teacher(section) else ""
    teacher_terms = _text(teacher_license) or NOT_STATED
    parts = [
        f"# {_text(title)}",
        f"An image classifier: {_text(arch)} {ending}{training}. Weights are {precision}."
        f" Card by mdistiller {__version__}.",
        "## Input and output",
        f"`image`: float32 `[N, 3, {info.input_size}, {info.input_size}]`, RGB in [0, 1], any `N`; normalization is"
        f" inside. {_preparation(source)} `logits`: float32 `[N, {info.num_classes}]`, in the order of the classes.",
        "## Requirements",
        _requirements(form, source.checkpoint["arch"]),
        "## Classes",
        _classes(info.classes),
        "## Data",
        f"Trained on `{_text(info.name)}`, {info.num_classes} classes, images of {info.input_size} px.",
        "## Teacher",
        f"{_text(teacher)}. License of its weights: {teacher_terms}." if teacher else "None.",
        "## Accuracy",
        f"Validation: {deployed} (epoch {source.checkpoint['epoch']}, as training recorded it). To measure it again:",
        f"```bash\npython3 tools/eval.py -m {_text(_name_to_give(arch))} -c {source.path.name}\n```",
        "## Cost",
        f"{cost.parameters:,} parameters, {cost.macs:,} multiply-accumulate operations an image, of which the head"
        f" {cost.head_parameters:,} and {cost.head_macs:,} (the network as trained, before layers are folded).",
        "## Intended use",
        "To be written by whoever publishes the model: what it is for, what it is not for, and its known limits.",
    ]
    return "\n\n".join(parts) + "\n"


def proof_section(proof: Proof, made_by: str, steps: Sequence[object] = ()) -> str:
    """Return the section that follows the card once the file has been proven.

    Args:
        proof: the proof of the file.
        made_by: the name of the exporter.
        steps: the steps of the quantization.
    """
    lines: List[str] = [
        "## Deployment proof",
        "",
        f"Written by `{made_by}`, {proof.size:,} bytes, and run in {proof.runtime} on {proof.images}. Compared with the"
        " checkpoint in PyTorch:",
        "",
        "| top-1 | change | agreement | top-1 changed | ties | largest logit difference |",
        "|---|---|---|---|---|---|",
        f"| {_number(proof.top1)} | {_number(proof.top1_change, '+')} | {proof.agreement:.2f} % | {proof.changed} |"
        f" {proof.ties} | {proof.difference:.2g} |",
        "",
        "Latency on the machine that exported it, which other programs may have slowed down: "
        + ", ".join(f"batch {size}: {ms:.2f} ms" for size, ms in proof.latency.items())
        + ".",
    ]
    if steps:
        lines += ["", "Steps of the quantization, each measured on the same images:", ""]
        lines += [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join(lines) + "\n"


def shown_model(name: str) -> str:
    """Return the name of a model without the folder of its file, if it is in one."""
    parts = parts_of(name)
    return f"{Path(parts[0]).name}:{parts[1]}" if parts is not None and parts[2] else name


def _name_to_give(arch: str) -> str:
    """Return the name by which a command line can build the model `arch`, with a placeholder for an unknown file."""
    place, _, attribute = arch.partition(":")
    return f"path/to/file.py:{attribute.partition('.')[2]}" if place == PREFIX else shown_model(arch)


def needs_to_rebuild(arch: str) -> str:
    """Return what rebuilding a student from its weights needs, or an empty string for a model of the zoo."""
    parts = parts_of(arch)
    if parts is not None:
        if parts[0] == PREFIX:
            return f"pass an instance of {parts[1].partition('.')[2]} as model to mdistiller.load"
        what = f"file {Path(parts[0]).name}" if parts[2] else f"module {parts[0]}"
        return f"the {what} must be there, and named (-m {shown_model(arch)})"
    library = library_of(arch)
    return f"{library} must be installed" if library else ""


def _requirements(form: str, arch: str) -> str:
    if form == "onnx":
        return "ONNX Runtime, or another program that runs ONNX files. The code of the network is not needed."
    if form == "torch":
        return "PyTorch (`torch.export.load`). The code of the network is not needed."
    rebuilding = needs_to_rebuild(arch)
    return "mdistiller, which builds the network" + (f"; for that, {_text(rebuilding)}." if rebuilding else ".")


def _number(value: object, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"


def _preparation(source: Source) -> str:
    return f"Resize the shorter side to {source.view.shorter_side} px (bilinear, antialiased) and crop the center."


def _classes(classes: Sequence[str]) -> str:
    named = ", ".join(map(_text, classes[:MAX_CLASSES]))
    more = len(classes) - MAX_CLASSES
    return named + (f" and {more} more; all are in the file's metadata, key `classes`" if more > 0 else "") + "."


def _text(value: object) -> str:
    """Return one line of printable text, without what Markdown would read as markup of its own."""
    return printable(value).replace("`", "'").replace("|", "\\|").replace("<", "&lt;")
