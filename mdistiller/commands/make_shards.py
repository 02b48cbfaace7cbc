"""Write shards for DATASET.TYPE webdataset: mdistiller-make-shards FOLDER OUT, or --index SHARDS --classes FILE."""

from __future__ import annotations

from typing import NoReturn

from ..cli import OneLineParser, run


def main() -> None:
    parser = OneLineParser(description="Write tar shards and their index from an image folder.")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="image folder: train/<class>/* and val/<class>/*")
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder to write, which does not exist yet")
    parser.add_argument(
        "-n", "--images-per-shard", type=int, default=10_000, metavar="N", help="at most this many; default 10000"
    )
    parser.add_argument(
        "--val-fraction", type=float, default=0.0, metavar="F", help="part of train/ to validate on if there is no val/"
    )
    parser.add_argument(
        "--corrupt",
        default="refuse",
        choices=("refuse", "skip", "unchecked"),
        help="images that cannot be read; as DATASET.CORRUPT",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that check the images")
    parser.add_argument("--index", metavar="SHARDS", help="only write the index of the shards in this folder")
    parser.add_argument("--classes", metavar="FILE", help="with --index: class names in label order, one a line")
    args = parser.parse_args()
    if args.images_per_shard < 1:
        parser.error(f"--images-per-shard is {args.images_per_shard}; expected at least 1")
    if not 0 <= args.val_fraction < 1:
        parser.error(f"--val-fraction is {args.val_fraction}; expected a number from 0 to below 1")
    if not 0 <= args.workers <= 512:
        parser.error(f"--workers is {args.workers}; expected 0 to 512")
    if args.index and (args.folder or not args.classes):
        parser.error("--index needs --classes FILE, and no other folder")
    options = {name: getattr(args, name) for name in ("images_per_shard", "val_fraction", "corrupt", "workers")}
    unused = [f"--{name.replace('_', '-')}" for name, value in options.items() if value != parser.get_default(name)]
    if args.index and unused:
        parser.error(f"--index writes an index only, and does not take {', '.join(unused)}")
    if not args.index and (args.out is None or args.classes):
        parser.error("expected FOLDER and OUT, or --index SHARDS --classes FILE")

    from ..dataset.shards.write import in_words, index_shards, make_shards
    from ..errors import UserError
    from ..paths import user_path

    if args.index:
        out = user_path(args.index)
        shards = index_shards(out, user_path(args.classes))
    else:
        out = user_path(args.out)
        given = args.images_per_shard, args.val_fraction, args.corrupt, args.workers
        try:
            shards = make_shards(user_path(args.folder), out, *given)
        except UserError as error:
            raise UserError(*map(_with_own_options, error.faults)) from None
    print(*in_words(shards), sep="\n")
    print(f"train with DATASET.TYPE webdataset DATASET.ROOT {out}")


def _with_own_options(fault: str) -> str:
    """Return a message about an image folder with this command's options in place of the configuration's keys."""
    for key, option in (("DATASET.VAL_FRACTION", "--val-fraction"), ("DATASET.CORRUPT", "--corrupt")):
        fault = fault.replace(key, option)
    return fault


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="start again; nothing was kept")


if __name__ == "__main__":
    command()
