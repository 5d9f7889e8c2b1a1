"""Where the tests find data in the formats of public sets: lines of our own, and the sets beside some checkouts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).with_name("samples")
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def each_data_file(name: str) -> pytest.MarkDecorator:
    """Calls the test with `path`: our sample `name`.jsonl, and the set itself where it is there."""
    found = [path for suffix in ("jsonl", "jsonl.gz") if (path := SHARED_DATA / f"{name}.{suffix}").is_file()]
    return pytest.mark.parametrize("path", [SAMPLES / f"{name}.jsonl", *found], ids=lambda path: path.parent.name)


def records(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]
