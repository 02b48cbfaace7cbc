"""Files from the network, continued where a try broke off, and archives that stay inside their folder."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, List, Optional, Tuple

from tqdm import tqdm

from .errors import UserError
from .paths import check_not_device

TIMEOUT = 30  # seconds without an answer from the server
CHUNK = 1 << 20  # bytes
BLOCK = 512  # bytes, of a tar archive
MAX_DEPTH = 100  # nested folders; Python's functions on paths fail beyond some depth

# URLError, timeouts and broken connections are OSErrors; an invalid address is a ValueError
NetworkError = (OSError, http.client.HTTPException, ValueError)


def download(url: str, target: Path) -> None:
    """Write what `url` gives to `target`, or continue `target.part` with an HTTP range, if it is of the same version.

    The version (`ETag`, else `Last-Modified`) is kept in `target.part.version`; a server that names none, or knows no
    ranges, sends the file from its start.

    Raises:
        UserError: the server cannot be reached, refuses, or breaks off; what has come by then is kept.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"{url!r} is not an http(s) address; give one, or a file on this machine with --file")
    part = target.with_name(target.name + ".part")
    version = target.with_name(target.name + ".part.version")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        total = _fetch(url, part, version)
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{url} answers {error.code} {error.reason}; {_REMEDY}") from None
    except NetworkError as error:
        done = f" after {_megabytes(part.stat().st_size)}, run this again to continue" if part.is_file() else ""
        raise UserError(f"{url} cannot be downloaded ({_reason(error)}){done}; {_REMEDY}") from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise UserError(f"{url} broke off after {_megabytes(size)} of {_megabytes(total)}; run this again to continue")
    os.replace(part, target)
    version.unlink(missing_ok=True)


_REMEDY = (
    "without a network here, get it on another machine and give it with --file, or give a mirror's address with --url"
)


def _fetch(url: str, part: Path, version: Path) -> Optional[int]:
    """Bring `part` as far as the server sends; return the whole file's size in bytes, if the server says it."""
    known = version.read_text(encoding="utf-8") if part.is_file() and version.is_file() else ""
    start = part.stat().st_size if known else 0
    headers = {"Range": f"bytes={start}-", "If-Range": known} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "mdistiller", **headers})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        # there are no more bytes than these: they are all of it, or of another version
        size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if size and int(size[1]) == start:
            return start
        version.unlink()
        return _fetch(url, part, version)
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked for bytes {start}-, given {answer.headers.get('Content-Range')}")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        tag = answer.headers.get("ETag") or "W/"  # a weak one does not promise the same bytes
        with part.open("r+b" if start else "wb") as file, tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None, leave=False
        ) as bar:
            file.seek(start)
            # after the old bytes are gone: they must never stand beside the name of another version
            known = answer.headers.get("Last-Modified") or "" if tag.startswith("W/") else tag
            version.write_text(known, encoding="utf-8")
            while True:
                chunk = answer.read(CHUNK)
                if not chunk:
                    return total
                file.write(chunk)
                bar.update(len(chunk))


class BadArchive(UserError):
    """An archive that no second try will unpack: damaged, refused, or not the one that was expected."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        check_not_device(path)
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give the path of a file") from None
    return digest.hexdigest()


def unpack(archive: Path, folder: Path) -> Tuple[List[Path], List[Path]]:
    """Unpack a tar archive, compressed or not, into `folder`; return the files that it wrote and those that it kept.

    All entries are judged before the first is written: only plain files and folders, only inside `folder`, and nothing
    missing at the end. Files that exist are kept, whatever is in them. Owners, modes and times are not taken over.

    Raises:
        UserError: the archive is refused, damaged or truncated, or cannot be written out.
    """
    written: List[Path] = []
    kept: List[Path] = []
    try:
        with tarfile.open(archive) as content:
            members = content.getmembers()
            _check_whole(content, archive)
            targets = [_target(member, folder, archive) for member in members]
            for member, target in zip(members, targets):
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif target.exists():
                    kept.append(target)
                else:
                    _write(content, member, target)
                    written.append(target)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise BadArchive(
            f"{archive} is damaged, truncated or no tar archive ({_reason(error)}); get it again"
        ) from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder} ({_reason(error)})") from None
    return written, kept


def _check_whole(content: tarfile.TarFile, archive: Path) -> None:
    """An archive ends in a block of zeros, which one that was cut between two entries lacks."""
    file: Any = content.fileobj
    file.seek(content.offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise BadArchive(f"{archive} is truncated, its end is missing; get it again")


def _target(member: tarfile.TarInfo, folder: Path, archive: Path) -> Path:
    """Return where an entry goes, or refuse the archive."""
    if not (member.isreg() or member.isdir()):
        raise BadArchive(f"{archive} refused: {member.name!r} is a link or a device; expected files and folders")
    name = PurePosixPath(member.name)
    if len(name.parts) > MAX_DEPTH:
        raise BadArchive(
            f"{archive} refused: {member.name[:40]!r}… lies in {len(name.parts) - 1} folders within one another;"
            f" expected less than {MAX_DEPTH}"
        )
    root, target = Path(os.path.realpath(folder)), folder.joinpath(*name.parts)
    place = Path(os.path.realpath(target))  # a link that is in the folder already may lead out of it
    windows_path = "\\" in member.name or ":" in member.name
    if name.is_absolute() or ".." in name.parts or windows_path or root not in (place, *place.parents):
        raise BadArchive(f"{archive} refused: {member.name!r} would be written outside {folder}")
    if hasattr(tarfile, "data_filter"):  # Python's own check, where there is one
        tarfile.data_filter(member, str(folder))
    return target


def _write(content: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = content.extractfile(member)
    assert source is not None, member
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with source, partial.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
    os.replace(partial, target)


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
