"""Where fetched models and data live on this machine."""

import os
from pathlib import Path

CACHE_VARIABLE = "RAYWARD_CACHE"


def cache_root() -> Path:
    """The folder named by the environment variable RAYWARD_CACHE, or ~/.cache/rayward."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "rayward").expanduser()
