"""Export students in each format, and print the deployment proofs as a table: tools/prove_exports.py RUN [RUN ...]."""

from mdistiller.cli import OneLineParser, run


def main() -> None:
    parser = OneLineParser(description="Prove the exports of students in each format; the files are not kept.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="checkpoint of a student, or the folder of its run")
    parser.add_argument("-m", "--model", default="", help="your own code that builds the students, as in training")
    parser.add_argument("--root", default="", help="folder of the images; by default as in training")
    args = parser.parse_args()

    from mdistiller.errors import UserError
    from mdistiller.export.table import HEADER, proof_rows

    faults = []
    print(HEADER, flush=True)
    for path in args.runs:
        try:
            for row in proof_rows(path, ["DATASET.ROOT", args.root] if args.root else [], args.model):
                print(row, flush=True)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)


if __name__ == "__main__":
    run(main, interrupted="start again")
