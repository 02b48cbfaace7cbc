"""Data that were given as objects or folders in Python (`mdistiller.distill`), not by the configuration."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator, Optional

from yacs.config import CfgNode

from ..errors import UserError
from .loading.splits import Make, Splits, dataset_dict, is_of_any_size

NAME = "python"  # value of DATASET.TYPE

_make: ContextVar[Optional[Make]] = ContextVar("given_data", default=None)


@contextmanager
def given_data(make: Make) -> Iterator[None]:
    """Let `DATASET.TYPE: python` stand for `make(cfg)` within a `with` block."""
    token = _make.set(make)
    try:
        yield
    finally:
        _make.reset(token)


@dataset_dict.register(NAME)
def given(cfg: CfgNode) -> Splits:
    """Return the given data.

    Raises:
        UserError: none are given, because the configuration of a run in Python is used elsewhere.
    """
    make = _make.get()
    if make is None:
        raise UserError(
            "DATASET.TYPE python stands for data that were given in Python (mdistiller.distill), which cannot be read"
            " from here; give a data set: -d imagefolder DATASET.ROOT FOLDER, or use mdistiller.evaluate"
        )
    return make(cfg)


def has_own_size(cfg: CfgNode) -> bool:
    """Return whether the images of `DATASET.TYPE` have a common size, which pretrained weights do not change."""
    make = dataset_dict[cfg.DATASET.TYPE]
    if make is given:
        make = _make.get() or make
    return not is_of_any_size(make)
