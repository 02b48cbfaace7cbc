"""Compare the methods: tools/compare_methods.py table|train [--methods A,B] [KEY VALUE ...].

`table`: the teacher outputs that each method uses, its extra parameters, and its step time relative to KD's.
`train`: the top-1 accuracy of each method after a few epochs on the demo's images, or on others (DATASET.TYPE ...).
"""

import json
import sys

from mdistiller.atomic_files import writing_to
from mdistiller.cli import OneLineParser, add_overrides, new_file, run


def main() -> None:
    parser = OneLineParser(prog="tools/compare_methods.py", description="Compare the methods in one Markdown table.")
    parser.add_argument("what", choices=("table", "train"), help="costs, or accuracy after a few epochs")
    parser.add_argument("--methods", default="", help="names, separated by commas; default all")
    parser.add_argument("--pair", help="table: a pair in configs/cifar100/sfakd/; default res32x4_res8x4")
    parser.add_argument("--rounds", type=int, help="table: number of interleaved rounds; default 7")
    parser.add_argument("--steps", type=int, help="table: steps of each method in a round; default 4")
    parser.add_argument("--epochs", type=int, help="train: epochs of each method; default 3")
    parser.add_argument("--json", metavar="FILE", help="also write the results to a file")
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    for name, what in (("pair", "table"), ("rounds", "table"), ("steps", "table"), ("epochs", "train")):
        value = getattr(args, name)
        if value is not None and args.what != what:
            parser.error(f"--{name} is an option of {what}; leave it out")
        if type(value) is int and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    json_file = new_file(parser, "--json", args.json)

    from mdistiller.benchmark import methods
    from mdistiller.engine.cfg import load_cfg

    load_cfg(None, args.overrides)  # loads PLUGINS, so that --methods can name their methods
    chosen = methods.choose([name for name in args.methods.split(",") if name])
    if args.what == "table":
        rows, conditions = methods.cost_table(
            args.pair or "res32x4_res8x4", chosen, args.overrides, args.rounds or 7, args.steps or 4
        )
        print(methods.show_costs(rows, conditions))
    else:
        rows, conditions = methods.train_each(chosen, args.epochs or 3, args.overrides)
        print(methods.show_learning(rows, conditions))
    if json_file:
        content = {"command": sys.argv, "conditions": conditions, "rows": rows}
        with writing_to(json_file):
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, interrupted="start again")
