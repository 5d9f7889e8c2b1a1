"""The other end of `ChildProcess`: reads requests, runs the handler, sends replies.

Started as `python -m actors.user_code.child_main FILE_DESCRIPTOR`. A reply is {"result": value}, any number of times for one
request, then {"end": null} or {"end": what went wrong}.

Two processes: this code runs below a `child_guard`.
"""

import json
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from actors.user_code.child_guard import fork_under_guard

Handler = Callable[[Any], Iterable[Any]]


def main(file_descriptor: int) -> None:
    """Serve until the parent hangs up."""
    connection = Connection(file_descriptor)
    builder, settings, limits = connection.recv()
    _limit(**limits)
    requests: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, requests), daemon=True).start()
    try:
        handler = _build(builder, settings)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything; the parent is told
        _end(connection, error)
        return
    _end(connection, None)
    while True:
        _answer(connection, handler, requests.get())


def _limit(*, max_memory_bytes: int | None, max_file_bytes: int | None) -> None:
    """Of this process and those that it starts, before any code of others runs in it."""
    for kind, value in ((resource.RLIMIT_AS, max_memory_bytes), (resource.RLIMIT_FSIZE, max_file_bytes)):
        if value is not None:
            resource.setrlimit(kind, (value, value))


def _read(connection: Connection, requests: "SimpleQueue[Any]") -> None:
    """In a thread of its own, so that a child notices the end of its parent while its handler hangs."""
    try:
        while True:
            requests.put(connection.recv())
    finally:
        os._exit(0)


def _build(builder: str, settings: dict[str, Any]) -> Handler:
    module, _, function = builder.partition(":")
    return getattr(import_module(module), function)(**settings)


def _answer(connection: Connection, handler: Handler, request: Any) -> None:
    problem: Exception | None = None
    try:
        for result in handler(request):
            _send(connection, {"result": result})
    except Exception as error:  # noqa: BLE001 - as above
        problem = error
    _end(connection, problem)


def _end(connection: Connection, error: Exception | None) -> None:
    if error is not None:
        traceback.print_exception(error)
    _send(connection, {"end": None if error is None else f"{type(error).__name__}: {error}"})


def _send(connection: Connection, reply: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(reply, allow_nan=False).encode())


if __name__ == "__main__":
    fork_under_guard(file_descriptor=int(sys.argv[1]))
    main(int(sys.argv[1]))
