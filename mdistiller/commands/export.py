"""Export a student: mdistiller-export -c CKPT --format onnx|torch|safetensors [--half | --int8] [--output PATH]."""

from __future__ import annotations

from typing import NoReturn

from ..cli import OneLineParser, add_overrides, run, with_pair


def main() -> None:
    parser = OneLineParser(description="Export the deployed student, and check that the file gives the same results.")
    parser.add_argument("-c", "--ckpt", required=True, help="student checkpoint, or the folder of its run")
    parser.add_argument("-m", "--model", default="", help="your own code that builds the student, as in training")
    parser.add_argument("--format", default="onnx", choices=("onnx", "torch", "safetensors"), help="default onnx")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="float16")
    precision.add_argument("--int8", action="store_true", help="8-bit integers, calibrated on training images")
    parser.add_argument(
        "--output", metavar="PATH", help="file or folder; default export/FORMAT[-float16|-int8]/ beside the checkpoint"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="with --half or --int8: largest loss of top-1, in percentage points; default 0.5",
    )
    parser.add_argument(
        "--no-data", action="store_true", help="check the export on random images instead of the validation set"
    )
    parser.add_argument("--teacher-license", default="", metavar="TEXT", help="license of the teacher's weights")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the export and its model card with huggingface_hub")
    parser.add_argument("--private", action="store_true", help="with --push: create a private repository")
    parser.add_argument("-d", "--dataset", help="data set; by default the checkpoint's")
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    if args.private and not args.push:
        parser.error("--private needs --push")
    if args.max_drop is not None and not (args.half or args.int8):
        parser.error("--max-drop needs --half or --int8; a float32 export loses nothing")

    from ..export.export import export_student
    from ..export.hub import check_hub, push
    from ..export.options import Options

    if args.push:
        check_hub(args.push)
    options = Options(
        model=args.model,
        format=args.format,
        half=args.half,
        int8=args.int8,
        output=args.output,
        overwrite=args.overwrite,
        **({} if args.max_drop is None else {"max_drop": args.max_drop}),
        use_data=not args.no_data,
        teacher_license=args.teacher_license,
    )
    result = export_student(args.ckpt, options, with_pair(args.overrides, "DATASET.TYPE", args.dataset))
    print(result.report(), flush=True)
    if args.push:
        print(f"pushed    {push(result.path, result.card, args.push, args.private)}")


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="nothing was written, start again")


if __name__ == "__main__":
    command()
