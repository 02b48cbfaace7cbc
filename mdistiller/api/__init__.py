"""The Python API; `mdistiller` re-exports these names. See docs/python.md."""

from ..errors import UserError
from ..export.predict import Guess
from .distillation import distill
from .evaluation import evaluate
from .result import Result
from .student import Student, load

__all__ = ["Guess", "Result", "Student", "UserError", "distill", "evaluate", "load"]
