"""Runs PyTorch's exporters without output and without autocast, and turns their errors into `ExporterFailed`."""

from __future__ import annotations

import io
import logging
import re
import warnings
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Iterator

import torch

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colors


class ExporterFailed(Exception):
    """An exporter of PyTorch raised an error; the text says why in one line."""


@contextmanager
def exporting() -> Iterator[None]:
    """Run an exporter without output, autocast and gradients; the exported file is compared with the student later.

    An export runs without autocast. A network that switches it off for some layers would otherwise become a program
    with nested parts, which exporters and their readers support less well.

    Raises:
        ExporterFailed: the exporter raised an error.
    """
    autocast, disabled = torch.autocast, logging.root.manager.disable
    torch.autocast = lambda *args, **kwargs: nullcontext()  # type: ignore[misc,assignment]
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # exporters raise many types
        raise ExporterFailed(_reason(error)) from error
    finally:
        logging.disable(disabled)
        torch.autocast = autocast  # type: ignore[misc]


def _reason(error: BaseException) -> str:
    """Return the first sentence of the error that caused `error`."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(ESCAPES.sub("", str(error)).split())
    return re.split(r"(?<=[.!])\s", text)[0][:200] or type(error).__name__
