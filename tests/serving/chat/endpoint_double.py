"""A real HTTP server on loopback that answers as an OpenAI-compatible endpoint does, from a script."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Event = dict[str, Any] | str  # an event's JSON, or a line as it stands


class EndpointDouble(ThreadingHTTPServer):
    """Keeps what it was asked, in order, and streams the events that `say` gave it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.replies: list[tuple[int, dict[str, str], Sequence[Event]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def say(self, *pieces: str, version: str = "10") -> None:
        """The next request is answered with these pieces of text, in the form of the route that it came by."""
        events: list[Event] = [{"pieces": piece} for piece in pieces]
        self.replies.append((200, {"X-Policy-Version": version} if version else {}, [*events, "data: [DONE]"]))

    def send(self, status: int, *events: Event, **headers: str) -> None:
        """The next request is answered with this."""
        self.replies.append((status, headers, events))


class _Handler(BaseHTTPRequestHandler):
    server: EndpointDouble

    def do_GET(self) -> None:
        self.server.authorizations.append(self.headers.get("Authorization"))
        if self.server.replies and self.server.replies[0][0] != 200:
            self._reply(*self.server.replies.pop(0))
        else:
            self._reply(200, {}, [json.dumps({"data": [{"id": "night"}]})])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"route": self.path, **body})
        self.server.authorizations.append(self.headers.get("Authorization"))
        status, headers, events = self.server.replies.pop(0)
        self._reply(status, headers, [self._in_form(event) for event in events])

    def _in_form(self, event: Event) -> str:
        if isinstance(event, dict) and "pieces" in event:
            text = event["pieces"]
            choice = {"text": text} if self.path == "/v1/completions" else {"delta": {"content": text}}
            return f"data: {json.dumps({'choices': [choice]})}\n"
        return event if isinstance(event, str) else f"data: {json.dumps(event)}\n"

    def _reply(self, status: int, headers: dict[str, str], lines: Sequence[Event]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        for line in lines:
            self.wfile.write(f"{line if isinstance(line, str) else json.dumps(line)}\n".encode())
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal of the tests."""


@contextmanager
def endpoint_double() -> Iterator[EndpointDouble]:
    """Listens until the end of the block."""
    with EndpointDouble() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
