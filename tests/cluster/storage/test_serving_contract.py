"""The serving contract in a policy's folder."""

from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.storage.serving_contract import (
    CONTRACT_NAME,
    ContractPrompt,
    ServingContract,
    check_files,
    file_digests,
    read_contract,
    write_contract,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a contract about three files and one text."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    contract = ServingContract(
        policy_version=3,
        weights_dtype="float32",
        compute_dtype="float32",
        max_logprob_mismatch=0.1,
        files=file_digests(tmp_path),
        prompts=(ContractPrompt(text="ab", token_ids=(1, 2), logprobs=(-0.5,)),),
    )
    write_contract(tmp_path, contract)
    return tmp_path


def contract_of(folder: Path) -> ServingContract:
    contract = read_contract(folder)
    assert contract is not None
    return contract


def test_a_contract_is_read_as_it_was_written(folder: Path) -> None:
    contract = contract_of(folder)
    assert contract.prompts[0].logprobs == (-0.5,)
    assert contract.files.keys() == {"config.json", "model.safetensors", "tokenizer.json"}
    check_files(folder, contract)


def test_a_folder_from_elsewhere_has_none(tmp_path: Path) -> None:
    assert read_contract(tmp_path) is None


def test_what_differs_from_the_contract_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("other")
    (folder / "tokenizer.json").unlink()
    (folder / "more.safetensors").write_text("")
    with pytest.raises(DataError, match="tokenizer.json missing; more.safetensors not of the contract; config.json changed"):
        check_files(folder, contract_of(folder))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-0.5", "NaN"),
        ("[\n    -0.5\n   ]", "[]"),
        ('"policy_version": 3', '"policy_version": "3"'),
        ("{", ""),
    ],
)
def test_a_contract_that_makes_no_sense_is_told(folder: Path, before: str, after: str) -> None:
    path = folder / CONTRACT_NAME
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(DataError, match="is no serving contract"):
        contract_of(folder)
