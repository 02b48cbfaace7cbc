"""Download the released teachers: tools/fetch_ckpts.py [--url URL | --file ARCHIVE] [--sha256 SUM]."""

from mdistiller.commands.fetch_ckpts import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
