"""Which folder is served, and whether it can be."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError, DataError

VERSION_FOLDER = re.compile(r"v(\d+)")  # policies/v000010
WEIGHT_PATTERN = "*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFolder:
    """A complete Hugging Face folder. Produced by `resolve_policy`, consumed by `serve_policy`."""

    path: Path
    name: str  # of its run, or of the folder where it belongs to no run


def resolve_policy(model: str) -> PolicyFolder:
    """The folder itself, or the newest complete `policies/v*` of a run directory. Raises `DataError` if there is none."""
    path = Path(model).expanduser().resolve()
    if not path.is_dir():
        raise DataError(f"model {model!r}: no such folder; give a policy folder or a run directory")
    policies = path / "policies"
    if not policies.is_dir():
        missing = _missing_parts(path)
        if missing:
            raise DataError(
                f"{path} is no policy folder: it has no {', '.join(missing)}; nor is it a run directory with policies/"
            )
        return PolicyFolder(path=path, name=_run_name(path))
    complete = [folder for _, folder in sorted(_versions(policies)) if not _missing_parts(folder)]
    if not complete:
        raise DataError(f"{policies} holds no complete policy; has the run finished its first step?")
    return PolicyFolder(path=complete[-1], name=path.name)


def check_max_model_tokens(policy: PolicyFolder, max_model_tokens: int) -> None:
    """Raise `ConfigError` if the model has no positions for that many tokens; the engine would only say so a minute later."""
    try:
        model_config = json.loads((policy.path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{policy.path}/config.json is not valid JSON: {error}") from error
    longest = model_config.get("max_position_embeddings")
    if longest is not None and max_model_tokens > longest:
        raise ConfigError(
            f"max_model_tokens={max_model_tokens} is more than the {longest} positions of the model in {policy.path}; "
            f"set max_model_tokens={longest} or less"
        )


def _versions(policies: Path) -> list[tuple[int, Path]]:
    found = []
    for folder in policies.iterdir():
        matched = VERSION_FOLDER.fullmatch(folder.name)
        if matched and folder.is_dir():
            found.append((int(matched.group(1)), folder))
    return found


def _missing_parts(folder: Path) -> list[str]:
    """A policy is moved into place whole, so these parts stand for all; a folder copied by hand may lack them."""
    parts = {"config.json": "config.json", WEIGHT_PATTERN: WEIGHT_PATTERN, "tokenizer": "tokenizer*"}
    return [name for name, pattern in parts.items() if not any(folder.glob(pattern))]


def _run_name(folder: Path) -> str:
    is_in_run = folder.parent.name == "policies" and VERSION_FOLDER.fullmatch(folder.name)
    return folder.parent.parent.name if is_in_run else folder.name
