"""What a file of a run sets a key to, and what decided it: the file, a preset, or a default."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import read_yaml
from cluster.config_reference import value_of
from cluster.errors import ConfigError
from learners.settings.presets import preset_values
from learners.settings.run import load_any_run_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key in one file. Produced by `setting_in`, consumed by `rayward config explain`."""

    file: str
    value: Any  # plain, as it would stand in a file
    set_by: str  # "file" (or an override), "preset" of learner.algorithm, "default"


def setting_in(path: Path, overrides: Sequence[str], key: str) -> Setting:
    """Raises `ConfigError` where the file is bad, or of a kind that has no such key."""
    written = read_yaml(path, overrides)
    values = load_any_run_config(path, overrides).model_dump(mode="json")
    try:
        return Setting(file=str(path), value=value_of(values, key), set_by=_set_by(written, values, key))
    except KeyError:
        raise ConfigError(f"{key}: {path} has no such key; it is of another kind") from None


def _set_by(written: dict[str, Any], values: dict[str, Any], key: str) -> str:
    try:
        value_of(written, key)
    except KeyError:
        stage, is_learners, inside = key.rpartition("learner.")
        algorithm = value_of(values, f"{stage}learner.algorithm") if is_learners else ""
        return "preset" if algorithm in preset_values(inside) else "default"
    return "file"
