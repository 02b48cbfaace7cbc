"""Knowledge distillation of image classifiers: SFAKD and other methods, with MDistiller's interface.

The names in `__all__` are imported when they are first used, so that `import mdistiller` does not import PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["Guess", "Result", "Student", "UserError", "distill", "evaluate", "load"]

if TYPE_CHECKING:
    from typing import Any, List

    from .api import Guess, Result, Student, UserError, distill, evaluate, load


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
