"""Servers of object stores on 127.0.0.1, behind a proxy that can be slow, fail, cut answers short and lose its network.

moto's is one for S3, and gcp-storage-emulator one for Google Cloud Storage.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

BUCKET = "videos"

# Ends with its standard input, so also if this process is killed.
_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
# The emulator takes a carriage return at the end of a file for a part of the line that ends it.
_GOOGLE = """
import json, re, socket, sys
from gcp_storage_emulator import server

def read_data(handler, query, read=server._read_data):
    kind = handler.headers.get("Content-Type") or ""
    if not kind.startswith("multipart/related"):
        return read(handler, query)
    mark = b"--" + re.search('boundary="?([^";]+)', kind)[1].encode()
    _, about, rest = server._read_raw_data(handler).split(mark, 2)
    head, _, content = rest.partition(b"\\n\\n")
    content = content[: content.rindex(b"\\n" + mark)]
    about = json.loads(about.partition(b"\\n\\n")[2])
    return {"meta": about, "content": content, "content-type": head.partition(b":")[2].strip().decode()}

server._read_data = read_data
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
server.create_server("127.0.0.1", port, in_memory=True, default_bucket=sys.argv[1]).start()
print(port, flush=True)
sys.stdin.read()
"""


@dataclasses.dataclass
class Faults:
    """What the proxy does to requests whose path and query hold `only`.

    Attributes:
      delay: seconds before every answer.
      errors: so many of the next requests are answered with status 500.
      cuts: so many of the next answers with content end in their middle.
      flips: so many of the next answers with content have a wrong byte in their middle.
      garbles: so many of the next requests with content have a wrong byte in their middle.
      down_until: the time of `time.monotonic` until which every connection breaks, whatever its path.
      outage: seconds in which every connection breaks, from the next one on.
    """

    only: str = ""
    delay: float = 0.0
    errors: int = 0
    cuts: int = 0
    flips: int = 0
    garbles: int = 0
    down_until: float = 0.0
    outage: float = 0.0

    def is_down(self) -> bool:
        """Of a connection that is there now."""
        if self.outage:
            self.down_until, self.outage = time.monotonic() + self.outage, 0.0
        return time.monotonic() < self.down_until


class Server:
    """The running server of S3.

    Attributes:
      scheme: of its URLs.
      url: of the proxy.
      direct: of the server behind it.
      faults: may be changed or replaced at any time.
      asked: (method, path with query, the header Range) of every request to the proxy.
    """

    scheme = "s3"

    def __init__(self, direct: str) -> None:
        self.direct, self.url, self.faults = direct, "", Faults()
        self.asked: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that make S3 clients use the proxy."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str = "s3") -> Any:
        """A client of the server itself, without the proxy."""
        import boto3

        given = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.direct, **given)

    def upload(self, folder: Path, prefix: str) -> str:
        """Copies the files of a folder into the bucket; returns the URL of the copy."""
        client = self.client()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")
        return self.url_of(prefix)

    def url_of(self, prefix: str) -> str:
        """The URL of what is below a prefix."""
        return f"{self.scheme}://{BUCKET}/{prefix}"

    def names(self, prefix: str) -> list[str]:
        """The files below a prefix, without it."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [entry["Key"].removeprefix(f"{prefix}/") for page in pages for entry in page.get("Contents", ())]

    def demand_credentials(self) -> dict[str, str]:
        """Refuses everything from now on, except with these credentials."""
        iam = self.client("iam")
        iam.create_user(UserName="trainer")
        allow = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
        iam.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=allow)
        key = iam.create_access_key(UserName="trainer")["AccessKey"]
        url, header = f"{self.direct}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, b"0", header)).close()
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def take(self, fault: str, path: str) -> bool:
        """Whether this request has the fault; counts it."""
        with self._lock:
            if self.faults.only not in path or not getattr(self.faults, fault):
                return False
            setattr(self.faults, fault, getattr(self.faults, fault) - 1)
            return True


class GoogleServer(Server):
    """The running server of Google Cloud Storage; it asks for no credentials."""

    scheme = "gs"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that make clients use the proxy."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def upload(self, folder: Path, prefix: str) -> str:
        """Copies the files of a folder into the bucket; returns the URL of the copy."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = quote(f"{prefix}/{path.relative_to(folder)}", safe="")
            url = f"{self.direct}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}"
            header = {"Content-Type": "application/octet-stream"}
            urllib.request.urlopen(urllib.request.Request(url, path.read_bytes(), header)).close()
        return self.url_of(prefix)

    def names(self, prefix: str) -> list[str]:
        """The files below a prefix, without it."""
        url = f"{self.direct}/storage/v1/b/{BUCKET}/o?prefix={quote(prefix, safe='')}/"
        with urllib.request.urlopen(url) as answer:
            return [entry["name"].removeprefix(f"{prefix}/") for entry in json.load(answer).get("items", ())]


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """A server with the empty bucket `BUCKET`."""
    with _started(_MOTO) as direct:
        server = Server(direct)
        server.client().create_bucket(Bucket=BUCKET)
        with _proxy(server):
            yield server


@contextlib.contextmanager
def google_server() -> Iterator[GoogleServer]:
    """A server with the empty bucket `BUCKET`."""
    with _started(_GOOGLE) as direct:
        server = GoogleServer(direct)
        with _proxy(server):
            yield server


@contextlib.contextmanager
def _started(script: str) -> Iterator[str]:
    """The address of the server that a script starts and prints the port of."""
    command = [sys.executable, "-W", "ignore", "-c", script, BUCKET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout and process.stdin
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            process.kill()


@contextlib.contextmanager
def _proxy(server: Server) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_expect_100(self) -> bool:
            return True if server.faults.is_down() else super().handle_expect_100()

        def forward(self) -> None:
            faults, path = server.faults, self.path
            if faults.is_down():
                self.close_connection = True
                return
            server.asked.append((self.command, path, self.headers.get("Range", "")))
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if content and server.take("garbles", path):
                content = with_a_wrong_byte(content)
            if faults.only in path:
                time.sleep(faults.delay)
            if server.take("errors", path):
                self.answer(500, {}, b"")
                return
            connection = http.client.HTTPConnection(urlsplit(server.direct).netloc, timeout=60)
            with contextlib.closing(connection):
                connection.request(self.command, path, content, dict(self.headers))
                response = connection.getresponse()
                body = response.read()
            self.answer(response.status, dict(response.getheaders()), body)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = forward

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            # The length of what a HEAD request asks about is not that of its answer
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if status in (200, 206) and body and server.take("flips", self.path):
                body = with_a_wrong_byte(body)
            if status in (200, 206) and body and server.take("cuts", self.path):
                body, self.close_connection = body[: len(body) // 2], True
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Proxy(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{proxy.server_port}"
        try:
            yield
        finally:
            proxy.shutdown()
            thread.join()


def with_a_wrong_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def clean_environment() -> dict[str, str]:
    """This process's environment without what could lead a client elsewhere."""
    elsewhere = ("AWS_", "FSSPEC_", "GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_HOST")
    return {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
