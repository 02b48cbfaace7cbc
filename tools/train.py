"""Train a student: tools/train.py --cfg FILE [-d DATASET] [--resume | --overwrite] [KEY VALUE ...]."""

from mdistiller.commands.train import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
