"""Resumable downloads, and archives that cannot write outside their folder."""

from __future__ import annotations

import hashlib
import http.client
import logging
import lzma
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, Iterator, List, Optional, Tuple

from tqdm import tqdm

from .errors import UserError, one_line
from .paths import cache_root, check_not_device

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("mdistiller")

TIMEOUT = 30  # seconds
CHUNK = 1 << 20  # bytes
BLOCK = 512  # bytes, of a tar archive
MAX_DEPTH = 100  # nested folders; Python's functions on paths fail beyond some depth

# URLError, timeouts and broken connections are OSErrors; an invalid address is a ValueError
NetworkError = (OSError, http.client.HTTPException, ValueError)


def download(url: str, target: Path) -> None:
    """Download `url` to `target`; continue `target.part` by an HTTP range if the server still has the same version.

    The version (`ETag`, otherwise `Last-Modified`) is kept in `target.part.version`. If the server sends none, or does
    not support ranges, the download starts again.

    Raises:
        UserError: the server cannot be reached, refuses, or breaks off; the received part is kept.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"{url!r} is not an http(s) address; pass one, or a local file with --file")
    part = target.with_name(target.name + ".part")
    version = target.with_name(target.name + ".part.version")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        total = _fetch(url, part, version)
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{url} answered {error.code} {error.reason}; {_REMEDY}") from None
    except NetworkError as error:
        done = f" after {_megabytes(part.stat().st_size)}, run this again to continue" if part.is_file() else ""
        raise UserError(f"{url} cannot be downloaded ({_reason(error)}){done}; {_REMEDY}") from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise UserError(f"{url} broke off after {_megabytes(size)} of {_megabytes(total)}; run this again to continue")
    os.replace(part, target)
    version.unlink(missing_ok=True)


_REMEDY = (
    "without a network, download it on another machine and pass it with --file, or pass a mirror's address with --url"
)


def _fetch(url: str, part: Path, version: Path) -> Optional[int]:
    """Extend `part` as far as the server sends; return the size of the whole file in bytes, if the server sends it."""
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
        # The file has no more bytes than `part`: it is complete, or of another version.
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
        tag = answer.headers.get("ETag") or "W/"  # a weak tag does not guarantee equal bytes
        with part.open("r+b" if start else "wb") as file, tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None, leave=False
        ) as bar:
            file.seek(start)
            # written after the old bytes are gone, so that they never appear with another version
            known = answer.headers.get("Last-Modified") or "" if tag.startswith("W/") else tag
            version.write_text(known, encoding="utf-8")
            while True:
                chunk = answer.read(CHUNK)
                if not chunk:
                    return total
                file.write(chunk)
                bar.update(len(chunk))


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Let one process of this user at a time download to `target`, a file or folder; another one waits."""
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError, UserError):  # no place for the lock, or a file system without locks
                name = hashlib.sha256(os.path.realpath(target).encode()).hexdigest()[:16]
                lock = cache_root() / "locks" / name
                lock.parent.mkdir(parents=True, exist_ok=True)
                _wait_for_lock(stack.enter_context(lock.open("a", encoding="utf-8")), target)
        yield


def _wait_for_lock(file: IO[str], target: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        log.info(f"note: waiting for another process that downloads to {target}")
        fcntl.lockf(file, fcntl.LOCK_EX)


class BadArchive(UserError):
    """An archive that is damaged, refused, or not the expected one; trying again will not help."""


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
    """Unpack a tar archive, compressed or not, into `folder`; return the written files and the existing ones.

    All entries are checked before the first one is written: only plain files and folders inside `folder`, and a
    complete archive. Existing files are kept. Owners, modes and times are not restored.

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
            f"{archive} is damaged, truncated or not a tar archive ({_reason(error)}); get it again"
        ) from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder} ({_reason(error)})") from None
    return written, kept


def _check_whole(content: tarfile.TarFile, archive: Path) -> None:
    """Raise if the block of zeros at the end is missing, as in an archive that was cut between two entries."""
    file: Any = content.fileobj
    file.seek(content.offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise BadArchive(f"{archive} is truncated, its end is missing; get it again")


def _target(member: tarfile.TarInfo, folder: Path, archive: Path) -> Path:
    """Return the path of an entry, or refuse the archive."""
    if not (member.isreg() or member.isdir()):
        raise BadArchive(f"{archive} refused: {member.name!r} is a link or a device; expected files and folders")
    name = PurePosixPath(member.name)
    if len(name.parts) > MAX_DEPTH:
        raise BadArchive(
            f"{archive} refused: {member.name[:40]!r}… is nested in {len(name.parts) - 1} folders;"
            f" expected fewer than {MAX_DEPTH}"
        )
    root, target = Path(os.path.realpath(folder)), folder.joinpath(*name.parts)
    place = Path(os.path.realpath(target))  # an existing link in the folder may lead out of it
    windows_path = "\\" in member.name or ":" in member.name
    if name.is_absolute() or ".." in name.parts or windows_path or root not in (place, *place.parents):
        raise BadArchive(f"{archive} refused: {member.name!r} would be written outside {folder}")
    if hasattr(tarfile, "data_filter"):  # Python's own check, in recent versions
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
    return one_line(getattr(error, "reason", "") or error)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
