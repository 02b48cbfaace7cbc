"""Report on runs: tools/report.py RUN [RUN ...] --output report.html [--reference RUN]."""

from mdistiller.commands.report import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
