"""The parts of the Hugging Face Hub that an upload in one commit and a download of files need, on 127.0.0.1."""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.weights.server import listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by repository and path, and (method, path) of every request."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[tuple[str, str]] = []
        self.url = ""


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A running server; files go into the commit itself, as the Hub takes small ones."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, value: Any = None, content: bytes = b"", **headers: str) -> None:
            content = json.dumps(value).encode() if value is not None else content
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            path, body = self.path.partition("?")[0], self.body()
            hub.asked.append(("POST", path))
            if path == "/api/validate-yaml":  # of the card
                self.answer(200, {"errors": [], "warnings": []})
            elif self.headers["Authorization"] != "Bearer hf_right":
                self.answer(401, {"error": "Invalid username or password."})
            elif path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
                hub.files.setdefault(name, {})
                hub.private[name] = bool(wanted.get("private") or wanted.get("visibility") == "private")
                self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                names = [file["path"] for file in json.loads(body)["files"]]
                rows = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
                self.answer(200, {"files": rows})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        hub.files[match[1]][value["path"]] = base64.b64decode(value["content"])
                url = f"{hub.url}/{match[1]}/commit/{COMMIT}"
                self.answer(200, {"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})
            else:
                self.answer(404, {"error": f"no answer for POST {path}"})

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
            if match is None:
                self.answer(404, {"error": f"no answer for {path}"})
            elif match[1] not in hub.files:
                self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            elif match[2] not in ("main", COMMIT):
                self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            elif match[3] not in hub.files[match[1]]:
                self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                content = hub.files[match[1]][match[3]]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(200, content=content, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler) as hub.url:
        yield hub
