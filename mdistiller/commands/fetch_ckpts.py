"""Download the released teachers: mdistiller-fetch-ckpts [--url URL | --file ARCHIVE] [--sha256 SUM]."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn, Optional

from .. import paths
from ..cli import OneLineParser, run
from ..download import BadArchive, download, one_at_a_time, sha256_of, unpack
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
    archive = paths.user_path(folder / (Path(args.url.split("?")[0]).name[-200:] or "checkpoints.tar"))
    with one_at_a_time(folder):
        if args.file is not None:
            _unpack(paths.user_path(args.file), folder, args.sha256)
        elif args.url == RELEASE and _all_released_present():
            print(f"all released teachers are in {folder}; remove one to download it again")
        else:
            _download_and_unpack(args.url, archive, folder, args.sha256)


def _download_and_unpack(url: str, archive: Path, folder: Path, sha256: Optional[str]) -> None:
    downloads = not archive.is_file()
    if downloads:
        print(f"{url} -> {archive}", flush=True)
        download(url, archive)
    try:
        _unpack(archive, folder, sha256)
    except BadArchive as error:
        if downloads:
            archive.unlink()
            raise
        fault = error.faults[0].rpartition("; ")[0] or error.faults[0]
        raise UserError(f"{fault}; remove it, and run this again to download it") from None
    if downloads:  # removed last, so that a full disk or Ctrl-C does not cost the download
        archive.unlink()


def _unpack(archive: Path, folder: Path, sha256: Optional[str]) -> None:
    print(f"unpacking {archive}", flush=True)
    _check_sum(archive, sha256)
    written, kept = unpack(archive, folder)
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
