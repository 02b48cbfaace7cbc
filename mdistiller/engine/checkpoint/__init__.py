"""Checkpoint files: read without executing anything, written atomically, and loaded into a student."""

from .file import DamagedCheckpoint, read_checkpoint, save
from .foreign_weights import load_checkpoint, weights_of
from .student import (
    FORMAT,
    STUDENT_FILES,
    check_arch,
    check_known,
    choose_arch,
    constructor_of,
    describe_student,
    find_checkpoint,
    is_described,
    load_student,
)

__all__ = [
    "FORMAT",
    "STUDENT_FILES",
    "DamagedCheckpoint",
    "check_arch",
    "check_known",
    "choose_arch",
    "constructor_of",
    "describe_student",
    "find_checkpoint",
    "is_described",
    "load_checkpoint",
    "load_student",
    "read_checkpoint",
    "save",
    "weights_of",
]
