"""Train a student: mdistiller-train --cfg FILE [-d DATASET] [--resume | --overwrite] [KEY VALUE ...]."""

from __future__ import annotations

from typing import NoReturn

from ..cli import OneLineParser, add_overrides, run, with_pair


def main() -> None:
    parser = OneLineParser(description="Train a student as described by a YAML configuration.")
    parser.add_argument(
        "--cfg", required=True, metavar="FILE", help="configuration: a file, or a shipped one such as demo/sfakd"
    )
    parser.add_argument("-d", "--dataset", help="overrides DATASET.TYPE")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    add_overrides(parser)
    args = parser.parse_intermixed_args()

    from .. import distributed
    from ..engine.build import build_trainer
    from ..engine.cfg import experiment_name
    from ..engine.run.folder import RunFolder
    from ..engine.validate import load_valid_cfg

    overrides = with_pair(args.overrides, "DATASET.TYPE", args.dataset)
    with distributed.process_group():
        cfg = load_valid_cfg(args.cfg, overrides, args.resume, args.overwrite)
        folder = RunFolder(cfg.LOG.PREFIX, experiment_name(cfg))
        distributed.run_on_main(lambda: folder.check(args.resume, args.overwrite))  # before anything is built
        build_trainer(cfg, validate=False).train(args.resume, args.overwrite)


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main)


if __name__ == "__main__":
    command()
