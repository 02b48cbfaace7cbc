"""Report on runs: mdistiller-report RUN [RUN ...] --output report.html [--reference RUN]."""

from __future__ import annotations

from typing import NoReturn

from ..cli import OneLineParser, run


def main() -> None:
    parser = OneLineParser(description="Write a self-contained HTML report that compares runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as output/demo_sfakd")
    parser.add_argument("--output", required=True, metavar="FILE", help="the page, such as report.html")
    parser.add_argument("--reference", metavar="RUN", help="run that the others are compared with; default the first")
    parser.add_argument(
        "-m",
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="NAME",
        help="your own code that builds a student or a teacher of the runs, as in training; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is not an earlier report")
    parser.add_argument(
        "--set",
        dest="changes",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="config key to change, as DATASET.ROOT my_images, or PLUGINS; may be repeated",
    )
    args = parser.parse_intermixed_args()

    from ..report.report import write_report

    overrides = [word for pair in args.changes for word in pair]
    path = write_report(args.runs, args.output, args.reference, args.overwrite, overrides, args.models)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.2f} MiB)", flush=True)


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="nothing was written, start again")


if __name__ == "__main__":
    command()
