"""Evaluate a model: tools/eval.py [-m MODEL] [-c CKPT] [-d DATASET] [-bs N] [KEY VALUE ...]."""

from mdistiller.commands.eval import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
