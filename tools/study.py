"""Run a grid of methods, pairs and seeds: tools/study.py STUDY [--output DIR] [--jobs N] [--dry-run] [KEY VALUE]."""

from mdistiller.commands.study import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
