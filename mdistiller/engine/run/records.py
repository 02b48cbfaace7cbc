"""Reading what a run has recorded: metrics.jsonl and summary.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ...errors import UserError
from ...paths import find_file, read_text

Row = Dict[str, Any]  # a line of metrics.jsonl


def read_metrics(path: Path) -> List[Row]:
    """Return the rows of a metrics.jsonl; a last line that a killed process has cut off is left out.

    Raises:
        UserError: the file is missing, or a line is not a row.
    """
    try:
        lines = read_text(path).splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the metrics {path} cannot be read ({reason}); get the file again") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n") and number == len(lines):
            continue
        try:
            row = json.loads(line, parse_int=_number)
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and type(row.get("epoch")) is int):
            raise UserError(f"line {number} of {path} is not a row of a run ({line.strip()[:60]!r}); fix or remove it")
        rows.append(row)
    return rows


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 16 else float(digits)  # drawings need floating point


def read_summary(path: Path) -> Dict[str, Any]:
    """Return the content of a summary.json.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        summary = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        summary, reason = None, getattr(error, "strerror", None) or str(error)
    else:
        reason = f"it holds a {type(summary).__name__}"
    if not isinstance(summary, dict):
        raise UserError(f"{path} is damaged ({reason}); get it again, or remove it: the run then counts as unfinished")
    return summary


def read_references(paths: Sequence[str]) -> Dict[str, Dict[str, Any]]:
    """Return the summaries of `EXPERIMENT.REFERENCE` by path, with what the final table of a run needs.

    Raises:
        UserError: a file is missing or is not the summary.json of a run.
    """
    summaries = {}
    for path in paths:
        try:
            summaries[path] = summary = json.loads(read_text(find_file(path)))
            for part, key in (("last", "deployed_top1"), ("last", "deployed_top5"), ("best", "deployed_top1")):
                summary[part][key] = float(summary[part][key])
            for key in ("student", "method"):
                if not (isinstance(summary[key], str) and summary[key].isprintable()):
                    raise TypeError(f"{key} is no name")
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"EXPERIMENT.REFERENCE {path} is not the summary.json of a run ({type(error).__name__}: {error})"
            ) from None
    return summaries
