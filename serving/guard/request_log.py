"""One line of JSON for each request: ids, route, status, duration, the name of the key. Never a prompt, a key or an address.

JSON escapes control characters, so nothing that a client sends starts a line of its own or speaks to a terminal.
"""

import json
import logging
import os
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from serving.api_errors import MAX_NAME_CHARS

serve_logger = logging.getLogger("ray.serve")  # of a replica; it ends up in Ray's log folder
MAX_FILE_BYTES: Final = 10 * 2**20
NUM_OLD_FILES: Final = 2


class RequestLog:
    """Lines of one process. Pickles: the file is opened where the first line is written."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._logger: logging.Logger | None = None

    def begin(self, request_id: str, *, method: str, path: str, label: str | None) -> dict[str, Any]:
        """A record for the layers of a request to add to. Texts of the client's are cut."""
        record: dict[str, Any] = {"time_s": round(time.time(), 3), "request_id": request_id, "method": method[:16]}
        record["path"] = path[:MAX_NAME_CHARS]
        if label is not None:
            record["client_request_id"] = label[:MAX_NAME_CHARS]
        return record

    def end(self, record: dict[str, Any]) -> None:
        """Write the record's line."""
        if self._folder is not None:
            self._file().info("%s", json.dumps(record))

    def defect(self, request_id: str, error: BaseException) -> None:
        """An exception that no layer expected, with its stack, in one line among Serve's logs."""
        text = logging.Formatter().formatException((type(error), error, error.__traceback__))
        serve_logger.error("%s", json.dumps({"request_id": request_id, "exception": text}))

    def _file(self) -> logging.Logger:
        if self._logger is None:
            assert self._folder is not None
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"requests-{os.getpid()}.jsonl"
            handler = RotatingFileHandler(path, maxBytes=MAX_FILE_BYTES, backupCount=NUM_OLD_FILES, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._logger = logging.Logger("rayward.requests", level=logging.INFO)
            self._logger.addHandler(handler)
        return self._logger

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_logger": None}
