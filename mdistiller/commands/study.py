"""Run a grid of methods, pairs and seeds: mdistiller-study STUDY [--output DIR] [--jobs N] [KEY VALUE]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, NoReturn, Sequence

from ..cli import OneLineParser, add_overrides, run


def main() -> None:
    parser = OneLineParser(description="Run methods × pairs × seeds, and compare their results.")
    parser.add_argument("study", metavar="STUDY", help="a file, or a shipped study such as studies/demo")
    parser.add_argument("--output", metavar="DIR", help="folder of the study; default output/studies/NAME")
    parser.add_argument("--jobs", type=int, help="runs at the same time; default 1; with --cluster, no limit")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="RUN",
        help="run only this one, or those of a pattern such as 'small/*/seed0'; may be repeated: --only A --only B",
    )
    parser.add_argument("--fresh", action="store_true", help="use no results of other studies or machines")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and estimate their time")
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), help="submit the runs by submitit")
    parser.add_argument(
        "--cluster-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of the jobs, such as timeout_min=600 or slurm_partition=gpu; may be repeated",
    )
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}; expected at least 1")
    if args.cluster_option and not args.cluster:
        parser.error("--cluster-option needs --cluster")
    parameters = _parameters(parser, args.cluster_option)

    from ..errors import check_libraries
    from ..paths import user_path
    from ..study.dry_run import dry_run
    from ..study.grid import read_study
    from ..study.launchers import make_launcher
    from ..study.outputs import LIBRARIES
    from ..study.runner import run_study

    study = read_study(args.study, args.overrides)
    output = user_path(args.output or f"output/studies/{study.name}")
    if args.fresh:
        study = replace(study, summaries=(), share=())
    if args.dry_run:
        print(dry_run(study, output, args.jobs or 1, args.only))
        return
    check_libraries("a study", LIBRARIES)
    run_study(study, output, make_launcher(args.cluster, output, parameters, args.jobs), args.only)


def _parameters(parser: OneLineParser, words: Sequence[str]) -> Dict[str, Any]:
    import yaml

    from ..engine.cfg.yaml_files import parse

    parameters: Dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not (key and separator):
            parser.error(f"--cluster-option is {word!r}; expected KEY=VALUE, such as timeout_min=600")
        try:
            parameters[key] = parse(text)
        except yaml.YAMLError:
            parser.error(f"--cluster-option {key} has the value {text!r}, which is not valid YAML")
    return parameters


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="continue with the same command")


if __name__ == "__main__":
    command()
