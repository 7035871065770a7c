"""A web server for tests that says exactly what it is told to, byte by byte, on every address of the loopback."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Reply = bytes | Callable[[socket.socket], None]


def answer(body: bytes | str = b"", type: str | None = "text/html", status: str = "200 OK", **headers: Any) -> bytes:
    """A whole answer; underscores in names of headers stand for hyphens, None leaves a header out."""
    data = body.encode() if isinstance(body, str) else body
    named = {"Content-Type": type, "Content-Length": len(data)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", status=status, Location=location)


class LocalServer:
    """Answers by "host/path" or "/path"; whatever else is asked for is not there.

    Args:
        address: where it listens.
    """

    def __init__(self, address: str) -> None:
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        """Time, "host/path" and headers of each request."""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    outer._handle(self.request)

        class Threads(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

        self.server = Threads((address, 0), Handler)
        self.port = self.server.server_address[1]

    def _handle(self, link: socket.socket) -> None:
        link.settimeout(20)
        head = b""
        while b"\r\n\r\n" not in head:
            more = link.recv(65536)
            if not more:
                return
            head += more
        first, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        path = first.split(" ")[1]
        host = headers.get("Host", "").rpartition(":")[0]
        self.requests.append((time.monotonic(), f"{host}{path}", headers))
        reply = self.replies.get(f"{host}{path}", self.replies.get(path, answer("none", status="404 Not Found")))
        if callable(reply):
            reply(link)
        else:
            link.sendall(reply)

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


@contextmanager
def local_server(address: str = "127.0.0.1") -> Iterator[LocalServer]:
    server = LocalServer(address)
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
