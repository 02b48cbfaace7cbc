"""--push, against a local stand-in for the hub."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mdistiller.errors import UserError
from mdistiller.export.hub import check_hub

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")


class Hub(BaseHTTPRequestHandler):
    """Answers what `create_repo` and `create_commit` ask, and keeps what it was sent."""

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else self._chunks()
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        refused = self.headers.get("Authorization") != "Bearer hf_right"
        host = f"http://{self.headers['Host']}"
        if refused:
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self._answer(200, {"url": f"{host}/me/small"})
        elif self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            url = f"{host}/me/small/commit/abc"
            self._answer(200, {"success": True, "commitOid": "abc", "commitUrl": url, "hookOutput": ""})
        else:
            self._answer(200, {})

    def do_GET(self):
        known = self.path.startswith("/api/models/me/small")
        content = {"id": "me/small", "private": self.server.private} if known else {"error": "not found"}
        self._answer(200 if known else 404, content)

    def _chunks(self):
        parts = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while True:
                length = int(self.rfile.readline(), 16)
                parts.append(self.rfile.read(length))
                self.rfile.readline()
                if not length:
                    break
        return b"".join(parts)

    def _answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *given):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.private = [], True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def arguments(student_file):
    return ("export", "-c", student_file, "--format", "safetensors", "--no-data", "--push", "me/small", "--private")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_private_goes_to_a_public_repository(command, student_file, hub):
    hub.private = False
    status, _, err = command(*arguments(student_file))
    assert (status, err.count("\n")) == (2, 1)
    assert "--private, but me/small exists and is public; make it private" in err
    assert not [path for path, *_ in hub.requests if "commit" in path]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_and_card_are_uploaded_in_one_commit(command, student_file, hub):
    status, out, err = command(*arguments(student_file))
    assert (status, err) == (0, "") and out.splitlines()[-1].endswith("/me/small/commit/abc")
    created = json.loads(next(body for path, _, body in hub.requests if path == "/api/repos/create"))
    assert created["name"] == "small" and created["organization"] == "me"
    assert created.get("private") is True or created.get("visibility") == "private"
    (commit,) = [body for path, _, body in hub.requests if path == "/api/models/me/small/commit/main"]
    entries = [json.loads(line) for line in commit.splitlines()]
    files = {
        entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
        for entry in entries
        if entry["key"] == "file"
    }
    folder = student_file.parent / "export" / "safetensors"
    assert files == {
        "student.safetensors": (folder / "student.safetensors").read_bytes(),
        "README.md": (folder / "card.md").read_bytes(),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hub_that_refuses_is_one_line_and_the_export_stays(command, student_file, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, _, err = command(*arguments(student_file))
    assert status == 2 and len(err.splitlines()) == 1
    assert err.startswith("error: cannot push to 'me/small' (") and "the export stays at" in err
    assert (student_file.parent / "export" / "safetensors" / "student.safetensors").is_file()
    assert "hf_wrong" not in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_name_that_is_none_is_one_line(command, student_file, hub):
    status, _, err = command(*arguments(student_file)[:-2], "a/b/c")
    assert status == 2 and len(err.splitlines()) == 1 and "'a/b/c' is not the name of a repository" in err
    assert not hub.requests and not (student_file.parent / "export").exists()


def test_a_repository_without_a_user():
    with pytest.raises(UserError, match="--push 'small' is not the name of a repository .it has no user.; give USER"):
        check_hub("small")
