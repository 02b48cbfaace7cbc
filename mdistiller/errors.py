"""The exception type that the command lines turn into one line and exit status 2, and helpers for its messages."""

from __future__ import annotations

import difflib
import importlib.util
import re
from typing import Iterable, Mapping, Optional, Sequence, Tuple, Type

MAX_LINE_LENGTH = 2000  # characters
MAX_NAMES = 30  # listed when no name is similar
MAX_REASON_LENGTH = 300  # characters of another exception's message within ours
_NO_MEMORY = re.compile(
    "can't allocate memory|Storage size calculation overflowed|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)


class UserError(ValueError):
    """An error in something that the user gave.

    The message says, in one line, what was given, what was expected and what to do. Several faults have one line each.

    Args:
        faults: the faults, one line each. Line breaks and control characters in quoted text are removed.

    Attributes:
        faults: the lines.
    """

    def __init__(self, *faults: str) -> None:
        self.faults = [_without_the_middle(printable(fault)) for fault in faults]
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> Tuple[Type[UserError], Tuple[str, ...]]:
        return UserError, tuple(self.faults)  # a subclass may be built from something else


def printable(text: object) -> str:
    """Return `text` as one line, with question marks in place of control characters and undecodable bytes."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def _without_the_middle(line: str) -> str:
    half = MAX_LINE_LENGTH // 2
    return line if len(line) <= MAX_LINE_LENGTH else f"{line[:half]} ... {line[-half:]}"


def refuse(faults: Iterable[str]) -> None:
    """Raise one UserError with all of these lines, if there are any; otherwise do nothing."""
    lines = list(faults)
    if lines:
        raise UserError(*lines)


def missing_libraries(what: str, *names: str) -> UserError:
    """Return the error that `what`, such as `a study`, needs these packages of PyPI, which are not installed."""
    return UserError(f"{what} needs {', '.join(names)}; run: pip install {' '.join(names)}")


def check_libraries(what: str, libraries: Mapping[str, str]) -> None:
    """Raise a UserError if a library is missing.

    Args:
        what: what needs the libraries, such as `a study`.
        libraries: their names on PyPI, by import name.
    """
    missing = [name for module, name in libraries.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise missing_libraries(what, *missing)


def one_line(reason: object) -> str:
    """Return an exception's message (or any text) as one short line, or the name of its type if it has no message."""
    return " ".join(str(reason).split())[:MAX_REASON_LENGTH].rstrip(". ") or type(reason).__name__


def memory_shortage(error: BaseException) -> str:
    """Return one line of advice if Python, NumPy or PyTorch ran out of memory, or an empty string otherwise."""
    reason = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(reason):
        return (
            f"out of memory ({one_line(error)}); lower SOLVER.BATCH_SIZE,"
            " DATASET.TEST.BATCH_SIZE, DATASET.INPUT_SIZE or the sizes of the method"
        )
    return ""


def counted(count: int, what: str) -> str:
    """Return a number with its noun, such as `1 image` or `2,000 images`."""
    return f"{count:,} {what}{'s'[: count != 1]}"


def listed(names: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Return the first `limit` names as text, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def did_you_mean(name: str, known: Iterable[str], limit: int = 3, instead: Optional[Iterable[str]] = None) -> str:
    """Return `"; did you mean A or B?"` with the names most similar to `name`, or a list of names without one.

    Args:
        name: the name that is not known.
        known: all names.
        limit: how many similar names to give at most.
        instead: the names to list when none is similar; by default `known`.
    """
    names = sorted(str(n) for n in known)
    by_lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=limit, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(by_lower[c] for c in close)}?"
    return f"; known: {listed(names if instead is None else list(instead), MAX_NAMES) or 'none'}"


def dead_worker(error: BaseException) -> str:
    """Return one line if `error` is PyTorch's RuntimeError about a dead DataLoader worker, otherwise ""."""
    if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")):
        return ""
    return (
        f"a DataLoader worker died ({one_line(error)}), most often because memory ran out; lower DATASET.NUM_WORKERS or"
        " SOLVER.BATCH_SIZE, or give the container more shared memory (--shm-size), and continue with --resume"
    )
