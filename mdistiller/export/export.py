"""Exports a student: writes the file, proves it, adds a card, and leaves nothing behind if the proof fails."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import torch

from ..errors import UserError, refuse
from .card import model_card, proof_section
from .description import Description
from .formats.inference_form import inference_form
from .formats.onnx_file import EXPORTERS, ExporterFailed, has_new_exporter, need, onnx_program, open_onnx, write_onnx
from .formats.safetensors_file import MADE_BY as SAFETENSORS
from .formats.safetensors_file import write_safetensors
from .formats.torch_file import MADE_BY as TORCH
from .formats.torch_file import FreshProcess, open_torch, write_torch
from .opening import open_runner
from .place import CARD, staging, target_file
from .proof import Evidence, Proof
from .source import Source, read_source, training_pixels

log = logging.getLogger("mdistiller")

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


@dataclass(frozen=True)
class Options:
    """What to export.

    Attributes:
        format: `onnx`, `torch` or `safetensors`.
        half: float16 instead of float32.
        int8: 8-bit integers, ONNX only.
        output: the file, or a folder; by default `export/<format>/` beside the checkpoint.
        overwrite: whether to replace an earlier export.
        max_drop: largest loss of top-1 of `half` and `int8`, in percentage points.
        use_data: prove on the validation set; otherwise on random images.
        teacher_license: for the card.
        model: name of the student's backbone, see `read_source`.
    """

    format: str = "onnx"
    half: bool = False
    int8: bool = False
    output: Optional[str] = None
    overwrite: bool = False
    max_drop: float = 0.5
    use_data: bool = True
    teacher_license: str = ""
    model: str = ""

    @property
    def precision(self) -> str:
        return "float16" if self.half else "int8" if self.int8 else "float32"

    def faults(self) -> Iterator[str]:
        if self.format not in SUFFIXES:
            yield f"--format is {self.format!r}; expected one of {', '.join(SUFFIXES)}"
        if self.half and self.int8:
            yield "--half and --int8 exclude each other; give one"
        if self.int8 and self.format != "onnx":
            yield f"--int8 is for --format onnx, given {self.format}; use --format onnx, or --half"
        if self.int8 and not self.use_data:
            yield "--int8 is calibrated on training images, so it excludes --no-data; give the data set"
        if not 0 <= self.max_drop <= 100:
            yield f"--max-drop is {self.max_drop:g}; expected percentage points from 0 to 100"


@dataclass(frozen=True)
class Result:
    """A finished export.

    Attributes:
        path, card: the file and its card.
        made_by: the exporter.
        proof: of the file.
        steps: of the quantisation, as text.
        notes: what failed on the way.
    """

    path: Path
    card: Path
    made_by: str
    proof: Proof
    steps: Tuple[str, ...] = ()
    notes: Tuple[str, ...] = ()

    def report(self) -> str:
        """Return the proof and the place for people to read; the steps were logged as they were made."""
        notes = [f"note      {note}" for note in self.notes]
        size = f"{self.proof.size / 2**20:.2f} MiB"
        wrote = f"wrote     {self.path} ({size}, by {self.made_by}) and {self.card.name}"
        return "\n".join([*notes, *self.proof.lines(), wrote])


@dataclass
class _Job:
    """An export in progress: everything that writing and proving need."""

    source: Source
    evidence: Evidence
    options: Options
    card: str
    file: Path

    def description(self, made_by: str) -> Description:
        head = self.source.student.head
        return Description(
            classes=self.source.info.classes,
            input_size=self.source.view.size,
            margin=self.source.view.margin,
            arch=self.source.checkpoint["arch"],
            head="" if head is None else head.kind,
            precision=self.options.precision,
            made_by=made_by,
            card=self.card,
        )

    def network(self, half: bool) -> Tuple[torch.nn.Module, torch.Tensor]:
        """Return the network to export, and an example of its input."""
        info = self.source.info
        size = info.input_size
        return inference_form(self.source.student, size, info.mean, info.std, half), torch.rand(2, 3, size, size)

    def fault(self, proof: Proof, exact: bool) -> str:
        return proof.fault(exact, self.options.max_drop)


def export_student(path: str | os.PathLike[str], options: Options, overrides: Sequence[str] = ()) -> Result:
    """Export the student of a checkpoint or run folder, prove the file, and write its card.

    Args:
        path: a checkpoint file or a run folder.
        options: what to export.
        overrides: `KEY VALUE …`, for another place of the data set, or for plug-ins.

    Raises:
        UserError: the options contradict each other, the student or its data cannot be read, a library is missing, the
            proof fails, or the file cannot be written. Nothing is left behind.
    """
    refuse(options.faults())
    need(*{"onnx": ("onnx", "onnxruntime"), "safetensors": ("safetensors",)}.get(options.format, ()))
    source = read_source(path, overrides, options.model)
    kind = options.format + ("" if options.precision == "float32" else f"-{options.precision}")
    target = target_file(source.path, kind, SUFFIXES[options.format], options.output, options.overwrite)
    title = f"{source.checkpoint['arch']} for {source.checkpoint['dataset']}"
    card = model_card(source, title, options.precision, options.teacher_license)
    evidence = Evidence(source, options.use_data)
    with staging(target) as folder:
        job = _Job(source, evidence, options, card, folder / target.name)
        result = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors}[options.format](job)
        text = card + "\n" + proof_section(result.proof, result.made_by, result.steps)
        (folder / CARD).write_text(text, encoding="utf-8")
        for file in (job.file, folder / CARD):
            os.replace(file, target.parent / file.name)
    return Result(target, target.parent / CARD, result.made_by, result.proof, result.steps, result.notes)


def _onnx(job: _Job) -> Result:
    """Write an ONNX file by the first of PyTorch's exporters whose file passes the proof."""
    half = job.options.half
    model, image = job.network(half)
    notes: List[str] = []
    for dynamo in (True, False) if has_new_exporter() else (False,):
        made_by = f"{EXPORTERS[dynamo]} of PyTorch {torch.__version__}"
        try:
            write_onnx(onnx_program(model, image, dynamo), job.file, job.description(made_by))
            proof = _prove_onnx(job, timed=not job.options.int8)
            fault = job.fault(proof, exact=not half)
        except (ExporterFailed, UserError) as error:
            fault = str(error)
        if not fault:
            result = Result(job.file, job.file, made_by, proof, (), tuple(notes))
            return _int8(job, result) if job.options.int8 else result
        notes.append(f"{EXPORTERS[dynamo]} failed: {fault}")
    raise UserError(f"the export to ONNX is not equal to the student, so nothing was written ({'; '.join(notes)})")


def _prove_onnx(job: _Job, timed: bool) -> Proof:
    run = open_onnx(job.file).run
    runtime = f"ONNX Runtime {importlib.import_module('onnxruntime').__version__} on the CPU"
    return job.evidence.prove(run, runtime, job.file.stat().st_size, run if timed else None)


def _int8(job: _Job, exact: Result) -> Result:
    from .formats.int8 import NUM_CALIBRATION, quantise

    calibration = training_pixels(job.source, NUM_CALIBRATION)
    whole = job.file.rename(job.file.with_name("float32.onnx"))
    made_by = f"{exact.made_by}, then onnxruntime.quantization"
    steps = []
    description = job.description(made_by)
    for step in quantise(whole, job.file, calibration, job.evidence, description, job.options.max_drop):
        log.info("int8      %s", step)
        steps.append(str(step))
    return Result(job.file, job.file, made_by, _prove_onnx(job, timed=True), tuple(steps), exact.notes)


def _torch(job: _Job) -> Result:
    model, image = job.network(job.options.half)
    made_by = f"{TORCH} of PyTorch {torch.__version__}"
    write_torch(model, image, job.file, job.description(made_by))
    here = open_torch(job.file)
    with FreshProcess(job.file) as process:
        runtime = f"a fresh process with PyTorch {torch.__version__} on the CPU"
        proof = job.evidence.prove(process.run, runtime, job.file.stat().st_size, here.run)
    return _unless_faulty(job, Result(job.file, job.file, made_by, proof))


def _safetensors(job: _Job) -> Result:
    from safetensors import __version__ as version

    write_safetensors(job.source.checkpoint, job.file, job.description(SAFETENSORS), job.options.half)
    run = open_runner(job.file, model=job.options.model).run
    runtime = f"mdistiller's loader with PyTorch {torch.__version__} on the CPU"
    proof = job.evidence.prove(run, runtime, job.file.stat().st_size, run)
    return _unless_faulty(job, Result(job.file, job.file, f"{SAFETENSORS} {version}", proof))


def _unless_faulty(job: _Job, result: Result) -> Result:
    fault = job.fault(result.proof, exact=not job.options.half)
    if fault:
        raise UserError(f"the export is not equal to the student, so nothing was written ({fault})")
    return result
