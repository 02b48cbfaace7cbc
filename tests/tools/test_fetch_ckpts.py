"""The tool that gets the released teachers, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from mdistiller import download
from mdistiller.engine.checkpoint import read_checkpoint
from mdistiller.models import build_model, cifar_model_dict

NAME = "cifar_teachers.tar"
TEACHER = "cifar_teachers/vgg13_vanilla/ckpt_epoch_240.pth"


class Server(ThreadingHTTPServer):
    """Serves `content` at every path; what it was asked for is in `ranges`.

    Attributes:
        cut: bytes after which an answer breaks off.
        tag: the ETag.
        knows_ranges: whether it answers ranges.
        status: of every answer.
    """

    content, tag, knows_ranges, status, cut = b"", '"1"', True, 200, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/mirror/{NAME}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        start = 0
        if wanted and server.knows_ranges and self.headers.get("If-Range") in (None, server.tag):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else server.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    server.content = archive_of({TEACHER: bytes(range(256)) * 8000, "cifar_teachers/README": b"hello"})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder():
    return Path(os.environ["MDISTILLER_CKPTS"])


@pytest.fixture
def fetch(command, monkeypatch):
    """Run the tool; failures must be one line and status 2. Returns what was printed."""
    monkeypatch.setattr(download, "TIMEOUT", 300)  # the server here may be slow to answer

    def call(*arguments, fails=False):
        status, out, err = command("fetch_ckpts", *arguments)
        assert status == (2 if fails else 0), err
        if fails:
            assert err.startswith("error: ") and err.count("\n") == 1, err
        return err if fails else out

    return call


def archive_of(files, change=None, mode="w"):
    """Return a tar archive of `{name: bytes}`; `change(info)` alters each entry."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change:
                change(info)
            archive.addfile(info, io.BytesIO(content) if info.size else None)
    return buffer.getvalue()


def files_of(folder):
    """The files below a folder, without the lock in the user's cache."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks"
    }


def test_download_and_unpack(fetch, server, folder):
    out = fetch("--url", server.url)
    assert hashlib.sha256(server.content).hexdigest() in out
    assert "not compared; --sha256 SUM" in out
    assert f"{folder}: 2 files written, 0 kept" in out
    assert files_of(folder) == {TEACHER, "cifar_teachers/README"}
    assert (folder / TEACHER).read_bytes() == bytes(range(256)) * 8000
    assert os.fspath(cifar_model_dict["vgg13"][1]) == str(folder / TEACHER)


@pytest.mark.parametrize("cut", [1, 1_000_000])
def test_a_broken_download_continues(fetch, server, folder, cut):
    server.cut = cut
    err = fetch("--url", server.url, fails=True)
    assert re.search(r"broke off after [\d.]+ MB of 2.1 MB; run this again to continue", err)
    assert files_of(folder) == {f"{NAME}.part", f"{NAME}.part.version"}
    server.cut = None
    fetch("--url", server.url, "--sha256", hashlib.sha256(server.content).hexdigest())
    assert server.ranges == [None, f"bytes={cut}-"]
    assert files_of(folder) == {TEACHER, "cifar_teachers/README"}


def test_what_is_complete_is_not_asked_for_again(fetch, server, folder):
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(server.content)
    (folder / f"{NAME}.part.version").write_text(server.tag)
    fetch("--url", server.url)
    assert server.ranges == [f"bytes={len(server.content)}-"]
    assert files_of(folder) == {TEACHER, "cifar_teachers/README"}


@pytest.mark.parametrize("change", ["other version", "shorter version", "no ranges", "no version", "no memory of one"])
def test_parts_of_different_files_are_never_joined(fetch, server, folder, change):
    server.cut = 500_000
    if change == "no version":
        server.tag = None
    fetch("--url", server.url, fails=True)
    server.cut = None
    if change == "other version":
        server.tag, server.content = '"2"', archive_of({"a": b"x" * 600_000})
    elif change == "shorter version":
        server.content = archive_of({"a": b"x"})
    elif change == "no ranges":
        server.knows_ranges = False
    elif change == "no memory of one":
        (folder / f"{NAME}.part.version").unlink()
    fetch("--url", server.url, "--sha256", hashlib.sha256(server.content).hexdigest())
    assert not any("part" in name for name in files_of(folder))


def test_a_wrong_sum(fetch, server, folder):
    err = fetch("--url", server.url, "--sha256", "0" * 64, fails=True)
    assert f"is {hashlib.sha256(server.content).hexdigest()}, expected {'0' * 64}; download it again" in err
    assert files_of(folder) == set()
    assert "expected 64 hexadecimal digits" in fetch("--sha256", "abc", fails=True)


def test_a_bad_archive_that_was_there_is_named_and_kept(fetch, server, folder):
    folder.mkdir()
    (folder / NAME).write_bytes(server.content[:3000])
    assert f"{NAME} is truncated" in (err := fetch("--url", server.url, fails=True)) or "damaged" in err
    assert err.endswith("; remove it, and run this again to download it\n")
    assert files_of(folder) == {NAME} and server.ranges == []


WAITING = """
import logging, pathlib, sys
from mdistiller.download import one_at_a_time
logging.basicConfig(level=logging.INFO, format="%(message)s")
with one_at_a_time(pathlib.Path(sys.argv[1])):
    print("second")
"""


def test_two_downloads_to_the_same_place(tmp_path, started):
    """The second process waits until the first has ended."""
    target = tmp_path / NAME
    with download.one_at_a_time(target):
        process = started(sys.executable, "-c", WAITING, target)
        process.wait_for(f"note: waiting for another process that downloads to {target}")
        assert "second" not in process.output("stdout")
    assert process.finish()[:2] == (0, "second\n")
    assert list(tmp_path.glob("*")) == [tmp_path / "cache"]


def test_without_a_network(fetch, folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    err = fetch("--url", f"http://127.0.0.1:{port}/{NAME}", fails=True)
    assert "cannot be downloaded" in err
    assert "download it on another machine and pass it with --file" in err
    assert "is not an http(s) address" in fetch("--url", "file:///etc/passwd", fails=True)
    assert "cannot be downloaded" in fetch("--url", "http://[::1", fails=True)


def test_a_server_that_refuses(fetch, server):
    server.status = 404
    assert "answered 404 Not Found; without a network" in fetch("--url", server.url, fails=True)


def test_a_file_from_elsewhere_and_one_in_place(fetch, server, folder, tmp_path):
    (tmp_path / "t.tar").write_bytes(server.content)
    fetch("--file", tmp_path / "t.tar")
    assert (tmp_path / "t.tar").is_file()
    (folder / TEACHER).unlink()
    (folder / NAME).write_bytes(server.content)
    assert "1 files written, 1 kept" in fetch("--url", server.url)
    assert server.ranges == []
    assert (folder / NAME).is_file(), "the user's own file was removed"
    assert "cannot read gone.tar" in fetch("--file", "gone.tar", fails=True)
    assert "not allowed with argument" in fetch("--file", "t.tar", "--url", server.url, fails=True)


def test_existing_files_are_kept(fetch, server, folder):
    (folder / TEACHER).parent.mkdir(parents=True)
    (folder / TEACHER).write_bytes(b"mine")
    assert "1 files written, 1 kept unchanged" in fetch("--url", server.url)
    assert (folder / TEACHER).read_bytes() == b"mine"


def test_nothing_to_do(fetch, folder, monkeypatch):
    for _, teacher in cifar_model_dict.values():
        if teacher is not None:
            Path(teacher).parent.mkdir(parents=True)
            Path(teacher).write_bytes(b"")
    assert f"all released teachers are in {folder}" in fetch()


def turned(**changes):
    def change(info):
        for key, value in changes.items():
            setattr(info, key, value)

    return change


BAD = {
    "above": (archive_of({"a": b"1", "../escaped": b"2"}), "'../escaped' would be written outside"),
    "deep above": (archive_of({"a/../../escaped": b"2"}), "would be written outside"),
    "absolute": (archive_of({"x": b"2"}, turned(name="/tmp/mdistiller_escaped")), "would be written outside"),
    "backslash": (archive_of({"..\\escaped": b"2"}), "would be written outside"),
    "drive": (archive_of({"C:escaped": b"2"}), "would be written outside"),
    "through a link": (archive_of({"linked/escaped": b"2"}), "'linked/escaped' would be written outside"),
    "symlink": (archive_of({"x": b""}, turned(type=tarfile.SYMTYPE, linkname="..")), "'x' is a link or a device"),
    "hard link": (archive_of({"x": b""}, turned(type=tarfile.LNKTYPE, linkname="../y")), "is a link or a device"),
    "device": (archive_of({"x": b""}, turned(type=tarfile.CHRTYPE)), "is a link or a device"),
    "fifo": (archive_of({"x": b""}, turned(type=tarfile.FIFOTYPE)), "is a link or a device"),
    "cut in a file": (archive_of({"a": b"1" * 4000, "b": b"2" * 4000})[:6000], "damaged, truncated or not a tar"),
    "cut between files": (archive_of({"a": b"1" * 512, "b": b"2"})[:1024], "is truncated, its end is missing"),
    "cut gzip": (archive_of({"a": bytes(np.random.default_rng(0).bytes(9000))}, mode="w:gz")[:5000], "truncated"),
    "empty": (b"", "damaged, truncated or not a tar"),
    "no archive": (b"<html>not found</html>" * 100, "damaged, truncated or not a tar"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_archives_write_nothing(fetch, folder, tmp_path, kind):
    content, message = BAD[kind]
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "bad.tar").write_bytes(content)
    before = files_of(tmp_path)
    assert message in fetch("--file", tmp_path / "bad.tar", fails=True)
    assert files_of(tmp_path) == before
    assert not Path("/tmp/mdistiller_escaped").exists()


def test_compressed_archives_and_folders(fetch, folder, tmp_path):
    def folders(info):
        if info.name.endswith("/"):
            info.type = tarfile.DIRTYPE

    content = archive_of({"./": b"", "./new/": b"", "./new/a.pth": b"1"}, folders, mode="w:gz")
    (tmp_path / "t.tar.gz").write_bytes(content)
    fetch("--file", tmp_path / "t.tar.gz")
    assert files_of(folder) == {"new/a.pth"}


def test_a_full_disk_is_one_line(fetch, server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "t.tar").write_bytes(server.content)
    monkeypatch.setenv("MDISTILLER_CKPTS", str(tmp_path / "file"))
    assert "cannot be unpacked into" in fetch("--file", tmp_path / "t.tar", fails=True)
    assert "cannot be downloaded" in fetch("--url", server.url, fails=True)


def test_a_fetched_teacher_with_numbers_and_optimizer_state_loads(fetch, folder, tmp_path):
    model = build_model("vgg13", 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best_acc": np.float64(74.64)}
    buffer = io.BytesIO()
    torch.save({**content, "epoch": 240, "accuracy": torch.tensor(74.6)}, buffer)
    (tmp_path / "t.tar").write_bytes(archive_of({TEACHER: buffer.getvalue()}))
    fetch("--file", tmp_path / "t.tar")
    loaded = read_checkpoint(folder / TEACHER)
    assert loaded["best_acc"] == 74.64
    assert torch.equal(loaded["model"]["classifier.weight"], model.state_dict()["classifier.weight"])
