"""Policy folders of a few bytes, and their contracts, for tests without an engine."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cluster.storage.serving_contract import ContractPrompt, ServingContract, file_digests, write_contract

PROMPT = ContractPrompt(text="abc", token_ids=(1, 2, 3), logprobs=(-1.0, -2.0))


def write_small_policy(folder: Path, *, value: float = 0.0, size: int = 2, tokenizer: str = "{}") -> Path:
    """Two files of weights that an index names, with one tensor each."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(tokenizer)
    for name in ("a", "b"):
        save_file({name: np.full(size, value, np.float32)}, folder / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def seal(folder: Path, *, dtype: str = "float32", prompts: tuple[ContractPrompt, ...] = (PROMPT,)) -> ServingContract:
    """Write the contract that a learner would."""
    contract = ServingContract(
        policy_version=int(folder.name.removeprefix("v")),
        weights_dtype=dtype,
        compute_dtype=dtype,
        max_logprob_mismatch=0.1,
        files=file_digests(folder),
        prompts=prompts,
    )
    write_contract(folder, contract)
    return contract
