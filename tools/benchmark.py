"""Measure the training loop: tools/benchmark.py [--pair A,B | --cfg FILE] [--method A,B] [--baseline] [KEY VALUE ...].

The table shows images per second with data loading, peak memory, and how close the loop comes to the machine's
roofline. With `--baseline`, a loop like MDistiller's runs in turns with it, and the table shows the ratio of the two. A
pair trains on random images unless DATASET.TYPE is given.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from mdistiller.atomic_files import writing_to
from mdistiller.cli import OneLineParser, add_overrides, new_file, run


def main() -> None:
    parser = OneLineParser(prog="tools/benchmark.py", description="Measure the training loop; print a Markdown table.")
    parser.add_argument(
        "--pair", metavar="A,B", default="", help="pairs in configs/cifar100/sfakd/; default res32x4_res8x4"
    )
    parser.add_argument("--cfg", metavar="FILE", default="", help="a configuration, with its data, in place of a pair")
    parser.add_argument("--method", metavar="A,B", default="", help="methods; default SFAKD, or the method of FILE")
    parser.add_argument(
        "--setting",
        type=shlex.split,
        action="append",
        default=[],
        metavar="'KEY VALUE ...'",
        help="add a row with these keys; repeatable; '' adds a row without any",
    )
    parser.add_argument("--baseline", action="store_true", help="also run a loop like MDistiller's, in turns")
    parser.add_argument(
        "--warm", action="store_true", help="repeat one epoch after an untimed pass, so that caches are filled"
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds; default %(default)s")
    parser.add_argument("--seconds", type=float, help="length of a loop's turn in a round; default 10")
    parser.add_argument("--steps", type=int, help="length of a turn in steps, in place of --seconds")
    parser.add_argument("--json", metavar="FILE", help="also write all results to a file")
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    for name in ("rounds", "seconds", "steps"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name} is {value}; give a number above 0")
    json_file = new_file(parser, "--json", args.json)
    for first, second in (("pair", "cfg"), ("seconds", "steps")):
        if getattr(args, first) and getattr(args, second):
            parser.error(f"--{first} and --{second} exclude each other; give one of them")

    from mdistiller.benchmark import synthetic, throughput
    from mdistiller.benchmark.interleave import TurnBudget

    def split_names(names: str) -> list[str]:
        return [name for name in names.split(",") if name]

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # stdout is for the table
        overrides = args.overrides
        if not args.cfg and "DATASET.TYPE" not in overrides:
            overrides = [*synthetic.make_images(Path(folder)), *overrides]
        pairs = split_names(args.pair) or ["res32x4_res8x4"]
        cases = throughput.make_cases(
            pairs, args.cfg or None, split_names(args.method), args.setting, overrides, args.warm
        )
        budget = TurnBudget(steps=args.steps) if args.steps else TurnBudget(seconds=args.seconds or 10.0)
        rows, conditions = throughput.benchmark(cases, args.baseline, args.rounds, budget)
    print(throughput.show(rows, conditions))
    if json_file:
        content = {"command": sys.argv, "conditions": conditions, "rows": rows}
        with writing_to(json_file):
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, "start again")
