"""Exports a student: writes the file, proves it, adds a card, and leaves nothing behind if the proof fails."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Mapping, Sequence, Tuple

import torch

from ..errors import UserError, refuse
from .card import model_card, needs_to_rebuild, proof_section, shown_model
from .description import Description
from .formats.inference_form import inference_form
from .formats.onnx_file import EXPORTERS as ONNX_EXPORTERS
from .formats.onnx_file import has_new_exporter, need, onnx_program, open_onnx, write_onnx
from .formats.safetensors_file import MADE_BY as SAFETENSORS
from .formats.safetensors_file import write_safetensors
from .formats.torch_file import EXPORTERS as TORCH_EXPORTERS
from .formats.torch_file import FreshProcess, open_torch, write_torch
from .formats.tracing import ExporterFailed
from .opening import open_runner
from .options import SUFFIXES, Options
from .place import CARD, staging, target_file
from .proof import Evidence, Proof
from .source import Source, read_source, training_pixels

log = logging.getLogger("mdistiller")


@dataclass(frozen=True)
class Result:
    """A finished export.

    Attributes:
        path, card: the paths of the file and of its card.
        made_by: the name of the exporter.
        proof: the proof of the file.
        steps: the steps of the quantization, as text.
        notes: the notes on what failed on the way.
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
    overrides: Sequence[str]

    def description(self, made_by: str) -> Description:
        head = self.source.student.head
        return Description(
            classes=self.source.info.classes,
            input_size=self.source.view.size,
            margin=self.source.view.margin,
            arch=shown_model(self.source.checkpoint["arch"]),
            head="" if head is None else head.kind,
            precision=self.options.precision,
            made_by=made_by,
            card=self.card,
        )

    def network(self) -> Tuple[torch.nn.Module, torch.Tensor]:
        """Return the network to export, and an example of its input."""
        info, half = self.source.info, self.options.half
        size = info.input_size
        return inference_form(self.source.student, size, info.mean, info.std, half), torch.rand(2, 3, size, size)

    def fault(self, proof: Proof) -> str:
        return proof.fault(exact=not self.options.half, max_drop=self.options.max_drop)


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
    if options.format == "onnx":
        need("onnx", "onnxruntime")
    source = read_source(path, overrides, options.model)
    kind = options.format + ("" if options.precision == "float32" else f"-{options.precision}")
    target = target_file(source.path, kind, SUFFIXES[options.format], options.output, options.overwrite)
    title = f"{shown_model(source.checkpoint['arch'])} for {source.checkpoint['dataset']}"
    card = model_card(source, title, options.precision, options.teacher_license, options.format)
    evidence = Evidence(source, options.use_data)
    with staging(target) as folder:
        job = _Job(source, evidence, options, card, folder / target.name, overrides)
        result = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors}[options.format](job)
        text = card + "\n" + proof_section(result.proof, result.made_by, result.steps)
        (folder / CARD).write_text(text, encoding="utf-8")
        for file in (job.file, folder / CARD):
            os.replace(file, target.parent / file.name)
    return Result(target, target.parent / CARD, result.made_by, result.proof, result.steps, result.notes)


def _first_proven(
    job: _Job,
    exporters: Mapping[bool, str],
    write: Callable[[bool, Description], None],
    prove: Callable[[], Proof],
) -> Result:
    """Write the file by the first exporter whose file passes the proof.

    Raises:
        UserError: there is none.
    """
    notes: List[str] = []
    for choice, name in exporters.items():
        made_by = f"{name} of PyTorch {torch.__version__}"
        try:
            write(choice, job.description(made_by))
            proof = prove()
            fault = job.fault(proof)
        except ExporterFailed as error:
            fault = str(error)
        except UserError as error:  # from opening or running the file; its remedy is for users of a finished export
            fault = (error.faults[0].rpartition("; ")[0] or error.faults[0]).replace(str(job.file), "the file")
        if not fault:
            return Result(job.file, job.file, made_by, proof, notes=tuple(notes))
        notes.append(f"{name} failed: {fault}")
    remedy = "leave --half out, or give another --format" if job.options.half else "give another --format"
    raise UserError(
        f"the student cannot be exported by --format {job.options.format}, so nothing was written ({'; '.join(notes)});"
        f" {remedy}"
    )


def _onnx(job: _Job) -> Result:
    model, image = job.network()

    def write(dynamo: bool, description: Description) -> None:
        write_onnx(onnx_program(model, image, dynamo), job.file, description)

    names = {dynamo: ONNX_EXPORTERS[dynamo] for dynamo in ((True, False) if has_new_exporter() else (False,))}
    result = _first_proven(job, names, write, lambda: _prove_onnx(job, timed=not job.options.int8))
    return _int8(job, result) if job.options.int8 else result


def _prove_onnx(job: _Job, timed: bool) -> Proof:
    run = open_onnx(job.file).run
    runtime = f"ONNX Runtime {importlib.import_module('onnxruntime').__version__} on the CPU"
    return job.evidence.prove(run, runtime, job.file.stat().st_size, run if timed else None)


def _int8(job: _Job, exact: Result) -> Result:
    from .formats.int8 import NUM_CALIBRATION, quantize

    calibration = training_pixels(job.source, NUM_CALIBRATION)
    whole = job.file.rename(job.file.with_name("float32.onnx"))
    made_by = f"{exact.made_by}, then onnxruntime.quantization"
    steps = []
    description = job.description(made_by)
    for step in quantize(whole, job.file, calibration, job.evidence, description, job.options.max_drop):
        log.info("int8      %s", step)
        steps.append(str(step))
    return Result(job.file, job.file, made_by, _prove_onnx(job, timed=True), tuple(steps), exact.notes)


def _torch(job: _Job) -> Result:
    model, image = job.network()

    def write(strict: bool, description: Description) -> None:
        write_torch(model, image, job.file, description, strict)

    def prove() -> Proof:
        here = open_torch(job.file)
        with FreshProcess(job.file) as process:
            runtime = f"a fresh process with PyTorch {torch.__version__} on the CPU"
            return job.evidence.prove(process.run, runtime, job.file.stat().st_size, here.run)

    return _first_proven(job, TORCH_EXPORTERS, write, prove)


def _safetensors(job: _Job) -> Result:
    from safetensors import __version__ as version

    write_safetensors(job.source.checkpoint, job.file, job.description(SAFETENSORS), job.options.half)
    run = open_runner(job.file, job.overrides, job.options.model).run
    runtime = f"mdistiller's loader with PyTorch {torch.__version__} on the CPU"
    proof = job.evidence.prove(run, runtime, job.file.stat().st_size, run)
    fault = job.fault(proof)
    if fault:
        raise UserError(f"the export is not equal to the student, so nothing was written ({fault})")
    rebuilding = needs_to_rebuild(job.source.checkpoint["arch"])
    notes = (f"to rebuild the student, {rebuilding}",) if rebuilding else ()
    return Result(job.file, job.file, f"{SAFETENSORS} {version}", proof, notes=notes)
