"""An S3 server on 127.0.0.1, moto's, behind a proxy that can be slow, fail, cut answers short and lose its network."""

import contextlib
import dataclasses
import http.client
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
from urllib.parse import urlsplit

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


@dataclasses.dataclass
class Faults:
    """What the proxy does to requests whose path and query hold `only`.

    Attributes:
      delay: seconds before every answer.
      errors: so many of the next requests are answered with status 500.
      cuts: so many of the next answers with content end in their middle.
      flips: so many of the next answers with content have a wrong byte in their middle.
      down_until: the time of `time.monotonic` until which every connection breaks, whatever its path.
      outage: seconds in which every connection breaks, from the next one on.
    """

    only: str = ""
    delay: float = 0.0
    errors: int = 0
    cuts: int = 0
    flips: int = 0
    down_until: float = 0.0
    outage: float = 0.0

    def is_down(self) -> bool:
        """Of a connection that is there now."""
        if self.outage:
            self.down_until, self.outage = time.monotonic() + self.outage, 0.0
        return time.monotonic() < self.down_until


class Server:
    """The running server.

    Attributes:
      url: of the proxy.
      direct: of the server behind it.
      faults: may be changed or replaced at any time.
      asked: (method, path with query, the header Range) of every request to the proxy.
    """

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
        return f"s3://{BUCKET}/{prefix}"

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


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """A server with the empty bucket `BUCKET`."""
    command = [sys.executable, "-W", "ignore", "-c", _MOTO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as moto:
        assert moto.stdout and moto.stdin
        try:
            server = Server(f"http://127.0.0.1:{int(moto.stdout.readline())}")
            server.client().create_bucket(Bucket=BUCKET)
            with _proxy(server):
                yield server
        finally:
            moto.stdin.close()
            moto.kill()


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

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

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
                body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
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


def clean_environment() -> dict[str, str]:
    """This process's environment without what could lead an S3 client elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
