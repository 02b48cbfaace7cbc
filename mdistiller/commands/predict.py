"""Classify pictures: mdistiller-predict -c CKPT [-k N] [--json | --csv] IMAGE|FOLDER [...]."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import NoReturn

from ..cli import OneLineParser, run


def main() -> None:
    parser = OneLineParser(description="Print the most probable classes of images.")
    parser.add_argument(
        "-c", "--ckpt", required=True, help="checkpoint, run folder, or export (.onnx, .pt2, .safetensors)"
    )
    parser.add_argument("-m", "--model", default="", help="your own code that builds the student, as in training")
    parser.add_argument(
        "-k", "--top", type=int, default=5, metavar="N", help="number of classes for each image; default 5"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="plug-in of the student; may be repeated"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="images, or folders of images")
    args = parser.parse_intermixed_args()
    if args.top < 1:
        parser.error(f"--top is {args.top}; expected at least 1")

    from ..errors import UserError
    from ..export.opening import OPENERS, open_runner
    from ..export.predict import as_csv, as_json, as_text, find_pictures, predict

    if (args.model or args.plugin) and args.ckpt.lower().endswith(tuple(OPENERS)):
        raise UserError(f"{args.ckpt} holds its whole network, so no code is needed; leave out -m and --plugin")
    with redirect_stdout(sys.stderr):  # notes must not mix with the result
        runner = open_runner(args.ckpt, ["PLUGINS", repr(args.plugin)] if args.plugin else [], args.model)
        files, faults = find_pictures(args.images)
        predictions, unreadable = predict(runner, files, args.top)
    print((as_json if args.json else as_csv if args.csv else as_text)(predictions), end="", flush=True)
    if faults + unreadable:
        raise UserError(*faults, *unreadable)


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="start again")


if __name__ == "__main__":
    command()
