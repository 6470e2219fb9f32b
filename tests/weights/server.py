"""A web server on 127.0.0.1 that serves files from memory, well or badly."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Publisher:
    """What the server has and does.

    Attributes:
      files: content by path, e.g. `/a.pth`.
      cut: answers, counted from the first, after so many bytes of which the connection ends.
      pause: seconds between pieces of a tenth of a file.
      status: if not 0, the status of every answer.
      ranges: whether it can resume.
      asked: (path, the header Range) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.pause, self.status, self.ranges = 0.0, 0, True
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


@contextlib.contextmanager
def publisher() -> Iterator[Publisher]:
    """A running server."""
    state = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path)
            if state.status or content is None:
                self.send_error(state.status or 404)
                return
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and state.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + state.cut.pop(0) if state.cut else len(content)
            step = max(1, len(content) // 10)
            for place in range(start, end, step):
                self.wfile.write(content[place : min(place + step, end)])
                self.wfile.flush()
                time.sleep(state.pause)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler) as state.url:
        yield state


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
