"""Classify pictures: tools/predict.py -c CKPT [-k N] [--json | --csv] IMAGE|FOLDER [...]."""

from mdistiller.commands.predict import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
