"""An S3 store for tests: moto's server, and in front of it a proxy that makes faults."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

REGION, KEY = "us-east-1", "testing"


@dataclass
class Answer:
    """What the proxy answers: of the store, or what a fault made of it.

    Attributes:
        cut: bytes of the body that are sent before the connection is reset; None sends all.
        stall: wait for the client to go away instead of sending the rest of the body.
        trickle: send the body a byte at a time, slowly.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None
    stall: bool = False
    trickle: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


Fault = Callable[[Request, Answer], Answer | None]
"""Changes an answer; None resets the connection without one."""


@dataclass
class Store:
    """The store as tests see it.

    Attributes:
        address: of the proxy.
        fault: is applied to the requests that ``matches``; None makes no faults.
        requests: all requests so far.
        faults_left: how many faults are still made; -1 for no end.
    """

    address: str
    inner: str
    fault: Fault | None = None
    matches: Callable[[Request], bool] = lambda request: request.method == "GET" and ".tar" in request.path
    faults_left: int = -1
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def make_faults(
        self, fault: Fault | None, count: int = -1, matches: Callable[[Request], bool] | None = None
    ) -> None:
        """Make a number of faults from now on."""
        with self.lock:
            self.fault, self.faults_left = fault, count
            self.matches = matches or (lambda request: request.method == "GET" and ".tar" in request.path)

    def put(self, name: str, data: bytes, bucket: str = "bucket") -> None:
        self._send("PUT", f"/{bucket}/{name}", data)

    def delete(self, name: str, bucket: str = "bucket") -> None:
        self._send("DELETE", f"/{bucket}/{name}", b"")

    def _send(self, method: str, path: str, data: bytes) -> None:
        connection = http.client.HTTPConnection(self.inner)
        signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/{REGION}/s3/aws4_request"}
        connection.request(method, path, data, signed)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status < 300, (method, path, answer.status)


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        request, fault = self._take_request()
        made = self._ask()
        if self.command == "GET":
            made.headers["Content-Length"] = str(len(made.body))
        self._answer(made if fault is None else fault(request, made))

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """Forward what changes the store; a fault keeps it from the store."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request, fault = self._take_request()
        if fault is not None:
            self._answer(fault(request, Answer(200, {}, b"")))
            return
        made = self._ask(body)
        made.headers["Content-Length"] = str(len(made.body))
        self._answer(made)

    do_POST = do_DELETE = do_PUT

    def _take_request(self) -> tuple[Request, Fault | None]:
        """Return the request, and the fault that is made of it."""
        store = self.store
        request = Request(self.command, self.path, dict(self.headers))
        with store.lock:
            store.requests.append(request)
            is_faulty = store.fault is not None and store.faults_left != 0 and store.matches(request)
            store.faults_left -= is_faulty and store.faults_left > 0
            return request, store.fault if is_faulty else None

    def _ask(self, body: bytes | None = None) -> Answer:
        """Return what the store answers."""
        connection = http.client.HTTPConnection(self.store.inner)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        kept = {
            k: v
            for k, v in answer.getheaders()
            if k.lower() not in ("connection", "transfer-encoding", "date", "server")
        }
        made = Answer(answer.status, kept, answer.read())
        connection.close()
        return made

    def _answer(self, made: Answer | None) -> None:
        self.close_connection = True
        if made is None:
            return
        try:
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in made.body if made.trickle else b"":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.store.ended.wait(0.05):
                    return
            if self.command != "HEAD":
                self.wfile.write(made.body[: made.cut])
            self.wfile.flush()
            if made.stall:
                self.store.ended.wait()
        except OSError:
            pass  # the client gave up


@contextmanager
def run_store() -> Iterator[Store]:
    """Run a store with one empty bucket called ``bucket`` until the block ends."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = Store("", f"{host}:{port}")
    handler = type("Proxy", (_Proxy,), {"store": store})
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    store.address = f"http://127.0.0.1:{proxy.server_port}"
    store._send("PUT", "/bucket", b"")
    try:
        yield store
    finally:
        store.ended.set()
        proxy.shutdown()
        proxy.server_close()
        server.stop()
