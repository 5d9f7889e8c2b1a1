"""Whether a policy may be served at all: what can be told from its files, before an engine loads them."""

from pathlib import Path
from typing import Literal

from actors.sources.adapters import is_adapter
from actors.sources.tensor_shapes import weight_files
from cluster.errors import DataError, RaywardError, WeightMismatchError
from cluster.storage.serving_contract import CONTRACT_NAME, ServingContract, check_files, read_contract
from serving.policy_folder import ServedModel, check_same_model, missing_parts

Reason = Literal["files", "model", "not_finite", "contract", "engine"]


class BadPolicyError(RaywardError):
    """A policy that must not be served. Its message is for the log, `reason` for everybody."""

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadPolicyError"], tuple[str], dict[str, str]]:
        return type(self), (str(self),), {"reason": self.reason}


def check_policy(folder: Path, served: ServedModel | None) -> ServingContract | None:
    """The serving contract of a folder that is whole. `served`: the model of an engine that is to take its weights.

    Without `served`, a folder without a contract is left to the engine: it may come from elsewhere. Raises `BadPolicyError`, and
    `OSError` where the disk does not answer. Reads every byte.
    """
    if is_adapter(folder):
        raise BadPolicyError(
            f"{folder} is an adapter, and an endpoint that follows a run takes whole policies; export with export.weights=merged",
            reason="files",
        )
    missing = missing_parts(folder)
    if missing:
        raise BadPolicyError(f"{folder} has no {', '.join(missing)}; export the policy again", reason="files")
    try:
        if served is not None:
            check_same_model(folder, served)
        contract = read_contract(folder)
        if contract is not None:
            check_files(folder, contract)
            _check_finite(folder)
    except DataError as error:
        raise BadPolicyError(str(error), reason="files") from error
    except WeightMismatchError as error:
        raise BadPolicyError(str(error), reason="model") from error
    if contract is None and served is not None:
        raise BadPolicyError(
            f"{folder} has no {CONTRACT_NAME}, so nobody can say whether an engine reads it right; runs write one with a policy",
            reason="contract",
        )
    return contract


def _check_finite(folder: Path) -> None:
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if not file.get_tensor(name).isfinite().all():
                    raise BadPolicyError(f"{path}: {name} holds numbers that are not finite", reason="not_finite")
