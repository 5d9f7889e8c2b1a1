"""The serving contract: what a learner says of the policy that it exports, so that an engine can be checked before it answers.

`serving_contract.json` in the policy's folder holds the sha256 of every other file, and for a few texts the token ids and the
log-probabilities of these tokens under the exported weights, in nats.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from cluster.config import StrictConfig
from cluster.errors import DataError
from cluster.storage.atomic_file import write_atomically

CONTRACT_NAME: Final = "serving_contract.json"


class ContractText(StrictConfig):
    """A text and its tokens, without any that a tokenizer would add. Rendered by the driver, completed by the learner."""

    text: str
    token_ids: tuple[int, ...] = Field(min_length=2)


class ContractPrompt(ContractText):
    """A text that an engine must read and judge as the learner does."""

    logprobs: tuple[float, ...]
    """Of `token_ids[1:]`, each after the tokens before it, in nats, at temperature 1."""

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.logprobs) != len(self.token_ids) - 1:
            raise ValueError(
                f"{len(self.token_ids)} tokens have {len(self.logprobs)} log-probabilities; all but the first need one"
            )
        return self


class ServingContract(StrictConfig):
    """Written by `PolicyLearner.export`, checked by a replica before it takes requests."""

    model_config = ConfigDict(strict=True)

    policy_version: int
    weights_dtype: str
    """Of the exported weights."""
    compute_dtype: str
    """Of the learner's matrix products."""
    max_logprob_mismatch: float = Field(gt=0)
    """Mean absolute difference, in nats a token, up to which the run took its engine's log-probabilities for the learner's."""
    files: dict[str, str]
    """sha256 by name, of every file of the folder but this one."""
    prompts: tuple[ContractPrompt, ...]


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 by name, of what a contract covers. Reads every file. Raises `OSError`."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != CONTRACT_NAME and path.is_file():
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def write_contract(folder: Path, contract: ServingContract) -> None:
    """Put it into the folder. Raises `NotWrittenError`."""
    write_atomically(folder / CONTRACT_NAME, contract.model_dump_json(indent=1) + "\n")


def read_contract(folder: Path) -> ServingContract | None:
    """None where the folder has none, as folders from elsewhere. Raises `DataError` for one that cannot be read."""
    path = folder / CONTRACT_NAME
    if not path.exists():
        return None
    try:
        return ServingContract.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f"{path} is no serving contract: {reason}; export the policy again") from error


def check_files(folder: Path, contract: ServingContract) -> None:
    """Raise `DataError` unless the folder holds the files of the contract, byte for byte, and no others."""
    found = file_digests(folder)
    problems: Sequence[tuple[str, list[str]]] = (
        ("missing", sorted(contract.files.keys() - found.keys())),
        ("not of the contract", sorted(found.keys() - contract.files.keys())),
        ("changed", sorted(name for name in found.keys() & contract.files.keys() if found[name] != contract.files[name])),
    )
    told = [f"{', '.join(names[:3])} {what}" for what, names in problems if names]
    if told:
        raise DataError(f"{folder} is not as the learner wrote it: {'; '.join(told)}; export the policy again")
