"""Write shards for DATASET.TYPE webdataset: tools/make_shards.py FOLDER OUT, or --index SHARDS --classes FILE."""

from mdistiller.commands.make_shards import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
