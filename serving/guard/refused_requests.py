"""Requests that an engine died of: written down by digest, and refused from then on.

A request that was alone in an engine that crashed is refused for good, and so is one that was inside a second time. One of
several is refused for a while: most of them did nothing, and the guilty one must not find the next engine at once.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cluster.errors import NotWrittenError
from cluster.storage.atomic_file import append_line
from serving.api_errors import Refusal
from serving.guard.request_log import serve_logger

HOLD_S: Final = 600.0  # longer than clients try again, and than it takes to replace an engine
WITHOUT_EFFECT: Final = frozenset({"model", "stream", "stream_options"})  # on what an engine computes


@dataclass(slots=True)
class _Death:
    num_times: int = 0
    was_alone: bool = False
    last_s: float = 0.0


class RefusedRequests:
    """One file for all front doors; each reads it again when another has written."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._size = 0  # of the file that was read
        self._deaths: dict[str, _Death] = {}

    def check(self, digest: str) -> None:
        """Raises `Refusal` for a request that is not to reach an engine."""
        self._read()
        death = self._deaths.get(digest)
        if death is None:
            return
        if death.was_alone or death.num_times > 1:
            raise Refusal(400, "an engine died of this request; it is refused", code="request_refused")
        if self._clock() - death.last_s < HOLD_S:
            raise Refusal(
                400, f"an engine died with this request inside; it is refused for {HOLD_S / 60:g} minutes", code="request_held"
            )

    def add(self, digest: str, *, was_alone: bool, request_id: str) -> None:
        """Write it down. A file that cannot be written is told to the log; this process remembers all the same."""
        entry = {"digest": digest, "was_alone": was_alone, "time_s": self._clock(), "request_id": request_id}
        self._read()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, json.dumps(entry))
        except (NotWrittenError, OSError) as error:
            serve_logger.error("a request that ended an engine was not written down: %s", error)
            self._note(entry)

    def _read(self) -> None:
        try:
            size = self._path.stat().st_size
            if size == self._size:
                return
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:  # nothing is written down yet, or what was is out of reach: what is known stays known
            return
        self._size, self._deaths = size, {}
        for line in lines:
            try:
                self._note(json.loads(line))
            except (ValueError, KeyError, TypeError):
                serve_logger.error("%s has a line that is no record of a request", self._path)

    def _note(self, entry: dict[str, Any]) -> None:
        death = self._deaths.setdefault(entry["digest"], _Death())
        death.num_times += 1
        death.was_alone |= bool(entry["was_alone"])
        death.last_s = float(entry["time_s"])


def request_digest(route: str, fields: dict[str, Any]) -> str:
    """SHA-256 of what an engine is asked; whether the reply is streamed makes no difference."""
    asked = {name: fields[name] for name in fields if name not in WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps([route, asked], sort_keys=True).encode()).hexdigest()
