"""Download the released teachers: mdistiller-fetch-ckpts [--url URL | --file ARCHIVE] [--sha256 SUM]."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn, Optional

from .. import paths
from ..cli import OneLineParser, run
from ..download import BadArchive, download, sha256_of, unpack
from ..errors import UserError

RELEASE = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"


def main() -> None:
    parser = OneLineParser(description="Download MDistiller's CIFAR-100 teachers.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", default=RELEASE, help="address of the archive or of a mirror; default: %(default)s")
    source.add_argument("--file", type=Path, help="an archive that is already on this machine")
    parser.add_argument("--sha256", metavar="SUM", help="expected SHA-256 of the archive; another one is an error")
    args = parser.parse_args()
    if args.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", args.sha256):
        raise UserError(f"--sha256 {args.sha256} is not a SHA-256 sum; expected 64 hexadecimal digits")

    folder = paths.ckpt_root()
    if args.file is None and args.url == RELEASE and _all_released_present():
        print(f"all released teachers are in {folder}; remove one to download it again")
        return
    archive = paths.user_path(args.file or folder / (Path(args.url.split("?")[0]).name[-200:] or "checkpoints.tar"))
    downloads = args.file is None and not archive.is_file()
    print(f"{args.url} -> {archive}" if downloads else f"unpacking {archive}", flush=True)
    if downloads:
        download(args.url, archive)
    try:
        _check_sum(archive, args.sha256)
        written, kept = unpack(archive, folder)
    except BadArchive:
        if downloads:
            archive.unlink()
        raise
    if downloads:  # removed last, so that a full disk or Ctrl-C does not cost the download
        archive.unlink()
    for path in written:
        print(path)
    print(f"{folder}: {len(written)} files written, {len(kept)} kept unchanged")


def _all_released_present() -> bool:
    from ..models import cifar_model_dict

    return all(os.path.isfile(teacher) for _, teacher in cifar_model_dict.values() if teacher is not None)


def _check_sum(archive: Path, given: Optional[str]) -> None:
    found = sha256_of(archive)
    if given and found != given.lower():
        raise BadArchive(
            f"SHA-256 of {archive} is {found}, expected {given.lower()}; download it again, or from another place"
        )
    compared = "as expected" if given else "not compared; --sha256 SUM compares it with one that you trust"
    print(f"SHA-256 {found} ({compared})")


def command() -> NoReturn:
    """Run `main` as a command line."""
    run(main, interrupted="run this again to continue")


if __name__ == "__main__":
    command()
