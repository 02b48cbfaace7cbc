"""Evaluate a model: mdistiller-eval [-m MODEL] [-c CKPT] [-d DATASET] [--split NAME] [KEY VALUE ...]."""

from __future__ import annotations

from typing import NoReturn

from ..cli import OneLineParser, add_overrides, new_file, run, with_pair


def main() -> None:
    parser = OneLineParser(description="Print the accuracy of a checkpoint, and what the model costs.")
    parser.add_argument(
        "-m",
        "--model",
        default="",
        help="architecture, such as resnet8x4; by default the one that the checkpoint records",
    )
    parser.add_argument(
        "-c", "--ckpt", help="checkpoint, or the folder of a run; by default the released teacher of that name"
    )
    parser.add_argument("-d", "--dataset", help="data set; by default the checkpoint's, or cifar100")
    parser.add_argument("-bs", "--batch-size", type=int, help="images per batch; does not change the result")
    parser.add_argument(
        "--split", default="val", metavar="NAME", help="folder beside train/ and val/ to evaluate on, such as test"
    )
    parser.add_argument(
        "--per-class", default="", metavar="FILE", help="write accuracy and confusion matrix by class to a CSV file"
    )
    parser.add_argument("--no-speed", action="store_true", help="do not measure images per second")
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    per_class = new_file(parser, "--per-class", args.per_class)

    from ..engine.evaluation.eval_checkpoint import eval_checkpoint

    overrides = with_pair(args.overrides, "DATASET.TYPE", args.dataset)
    overrides = with_pair(overrides, "DATASET.TEST.BATCH_SIZE", args.batch_size)
    print(eval_checkpoint(args.model, args.ckpt, overrides, args.split, per_class, not args.no_speed))


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="start again")


if __name__ == "__main__":
    command()
