"""Compare the methods: tools/compare_methods.py table|train [--methods A,B] [KEY VALUE ...].

`table`: the teacher outputs that each method uses, its extra parameters, and its step time relative to KD's.
`train`: the top-1 accuracy of each method after a few epochs on the demo's images, or on others (DATASET.TYPE ...).
"""

import json
import sys
from pathlib import Path

from mdistiller.cli import OneLineParser, add_overrides, check_new_file, run


def main() -> None:
    parser = OneLineParser(prog="tools/compare_methods.py", description="Compare the methods in one Markdown table.")
    parser.add_argument("what", choices=("table", "train"), help="costs, or accuracy after a few epochs")
    parser.add_argument("--methods", default="", help="names, separated by commas; default all")
    parser.add_argument(
        "--pair", default="res32x4_res8x4", help="table: a pair in configs/cifar100/sfakd/; default %(default)s"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="table: number of interleaved rounds; default %(default)s"
    )
    parser.add_argument(
        "--steps", type=int, default=4, help="table: steps of each method in a round; default %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=3, help="train: epochs of each method; default %(default)s")
    parser.add_argument("--json", metavar="FILE", help="also write the results to a file")
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    if min(args.rounds, args.steps, args.epochs) < 1:
        parser.error("--rounds, --steps and --epochs must be at least 1")
    check_new_file(parser, "--json", args.json)

    from mdistiller.benchmark import methods
    from mdistiller.engine.cfg import load_cfg

    load_cfg(None, args.overrides)  # loads PLUGINS, so that --methods can name their methods
    chosen = methods.choose([name for name in args.methods.split(",") if name])
    if args.what == "table":
        rows, conditions = methods.cost_table(args.pair, chosen, args.overrides, args.rounds, args.steps)
        print(methods.show_costs(rows, conditions))
    else:
        rows, conditions = methods.train_each(chosen, args.epochs, args.overrides)
        print(methods.show_learning(rows, conditions))
    if args.json:
        content = {"command": sys.argv, "conditions": conditions, "rows": rows}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, interrupted="nothing was kept; start again")
