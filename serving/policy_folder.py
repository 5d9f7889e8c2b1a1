"""Which folder is served, and whether it can be."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from actors.sources.adapters import is_adapter, merged_model
from actors.sources.tensor_shapes import WEIGHT_PATTERN, TensorShapes, differing_tensors, folder_tensor_shapes
from cluster.errors import ConfigError, DataError, WeightMismatchError
from cluster.storage.policy_folders import OWN_NETWORK, VERSION_FOLDER, version_folders
from cluster.storage.run_directory import LANGUAGE_MODEL_FOLDER

TOKENIZER_PATTERNS = ("tokenizer*", "chat_template*", "special_tokens_map.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFolder:
    """A complete Hugging Face folder. Produced by `resolve_policy`, consumed by `serve_policy`."""

    path: Path  # of an adapter, that of the model with the adapter merged into it
    name: str  # of its run, or of the folder where it belongs to no run
    policy_version: int | None  # None: the folder is no version of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What every policy of an engine has in common. Produced by `served_model`; the folder itself may be removed later."""

    folder: Path
    shapes: TensorShapes
    tokenizer_digest: str  # of tokenizer and chat template


def resolve_policy(model: str) -> PolicyFolder:
    """The folder itself, or what a run directory has: its newest complete `policies/v*`, or its `language_model`. An adapter is
    merged into its model, which takes a while the first time. Raises `DataError` if there is none."""
    path = Path(model).expanduser().resolve()
    if not path.is_dir():
        raise DataError(f"model {model!r}: no such folder; give a policy folder or a run directory")
    policies, own = path / "policies", path / LANGUAGE_MODEL_FOLDER
    if own.is_dir():
        return replace(_checked(own), name=path.name)
    if not policies.is_dir():
        return _whole(_checked(path))
    complete = [folder for _, folder in version_folders(policies) if not missing_parts(folder)]
    if not complete:
        raise DataError(f"{policies} holds no complete policy; has the run finished its first step?")
    return _whole(policy_folder(complete[-1]))


def _checked(folder: Path) -> PolicyFolder:
    if missing := missing_parts(folder):
        raise DataError(
            f"{folder} is no policy folder: it has no {', '.join(missing)}; nor is it a run directory with "
            "policies/ or language_model/"
        )
    return policy_folder(folder)


def _whole(policy: PolicyFolder) -> PolicyFolder:
    return replace(policy, path=merged_model(policy.path)) if is_adapter(policy.path) else policy


def served_model(folder: Path) -> ServedModel:
    """Raises `DataError` for weights that are cut off."""
    return ServedModel(folder=folder, shapes=folder_tensor_shapes(folder), tokenizer_digest=_tokenizer_digest(folder))


def check_same_model(newer: Path, served: ServedModel) -> None:
    """Raise `WeightMismatchError` unless `newer` has the tensors of `served` with other values, and its tokenizer and template.

    The engine would keep old values for whatever is missing, and goes on with the tokenizer that it has. Raises `DataError` for
    weights that are cut off.
    """
    differing = differing_tensors(folder_tensor_shapes(newer), served.shapes)
    if differing:
        raise WeightMismatchError(
            f"{newer} does not hold the tensors of {served.folder}: {len(differing)} are missing, unknown or of another shape, "
            f"first {differing[:3]}; serve it apart"
        )
    digest = _tokenizer_digest(newer)
    if digest != served.tokenizer_digest:
        raise WeightMismatchError(
            f"{newer} has another tokenizer or chat template (sha256 {digest[:12]}) than {served.folder} "
            f"({served.tokenizer_digest[:12]}); serve it apart"
        )


def check_is_run(model: str) -> None:
    """Raise `ConfigError` for anything but a run directory: nothing else gets newer policies."""
    if not (Path(model).expanduser() / "policies").is_dir():
        raise ConfigError(f"follow=true needs a run directory with policies/, but model={model!r} is none; leave follow out")


def check_served_by_engine(policy: PolicyFolder, max_model_tokens: int) -> None:
    """Raise `ConfigError` if no engine knows the network, or if it has no positions for that many tokens; the engine would only
    say so a minute later."""
    try:
        model_config = json.loads((policy.path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{policy.path}/config.json is not valid JSON: {error}") from error
    kind = str(model_config.get("model_type"))
    if kind.startswith(OWN_NETWORK):
        raise ConfigError(
            f"{policy.path} holds a network of model_type={kind}, which no engine knows, so it cannot be served; talk to it with "
            f"`rayward chat {policy.path} --prompt-format plain`"
        )
    longest = model_config.get("max_position_embeddings")
    if longest is not None and max_model_tokens > longest:
        raise ConfigError(
            f"max_model_tokens={max_model_tokens} is more than the {longest} positions of the model in {policy.path}; "
            f"set max_model_tokens={longest} or less"
        )


def missing_parts(folder: Path) -> list[str]:
    """A policy is moved into place whole, so these parts stand for all; a folder copied by hand may lack them. What an adapter
    lacks, its model has."""
    parts = {WEIGHT_PATTERN: WEIGHT_PATTERN}
    if not is_adapter(folder):
        parts = {"config.json": "config.json", **parts, "tokenizer": "tokenizer*"}
    return [name for name, pattern in parts.items() if not any(folder.glob(pattern))]


def policy_folder(folder: Path) -> PolicyFolder:
    """The record of a folder, by its name and place alone."""
    matched = VERSION_FOLDER.fullmatch(folder.name) if folder.parent.name == "policies" else None
    if matched is None:
        return PolicyFolder(path=folder, name=folder.name, policy_version=None)
    return PolicyFolder(path=folder, name=folder.parent.parent.name, policy_version=int(matched.group(1)))


def _tokenizer_digest(folder: Path) -> str:
    files = sorted({path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern) if path.is_file()})
    digests = (f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0" for path in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
