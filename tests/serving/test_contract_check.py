"""Whether an engine keeps a serving contract. The engine is a function."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.llm.openai_api_models import CompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionResponse, CompletionResponseChoice
from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.logprobs import Logprob

from cluster.storage.serving_contract import ContractPrompt
from serving.versions.contract_check import FLOAT32_MISMATCH, allowed_mismatch, check_contract
from serving.versions.policy_check import BadPolicyError
from tests.serving.small_policies import PROMPT, seal, write_small_policy

LONG = ContractPrompt(text="abcd", token_ids=(1, 2, 3, 4), logprobs=(-1.0, -2.0, -3.0))


def engine(*, shift: float = 0.0, token_ids: tuple[int, ...] = PROMPT.token_ids) -> Any:
    """Judges every text as the contract does, `shift` nats beside it."""

    async def ask(request: CompletionRequest) -> AsyncIterator[Any]:
        assert (request.prompt, request.add_special_tokens) == (PROMPT.text, False)
        places = [None, *({token: Logprob(logprob=-float(token - 1) + shift)} for token in token_ids[1:])]
        choice = CompletionResponseChoice(index=0, text="d", prompt_token_ids=list(token_ids), prompt_logprobs=places)
        reply = CompletionResponse(model="m", choices=[choice], usage=UsageInfo())

        async def replies() -> AsyncIterator[Any]:
            yield reply

        return replies()

    return ask


def check(folder: Path, ask: Any, *, dtype: Any = "float32", prompts: tuple[ContractPrompt, ...] = (PROMPT,)) -> None:
    contract = seal(write_small_policy(folder / "v000002"), prompts=prompts)
    asyncio.run(check_contract(contract, ask, model_id="m", engine_dtype=dtype, max_tokens=4))


@pytest.mark.parametrize(("dtype", "shift"), [("float32", 0.0), ("float32", 0.005), ("bfloat16", -0.09)])
def test_an_engine_that_agrees_passes(tmp_path: Path, dtype: str, shift: float) -> None:
    check(tmp_path, engine(shift=shift), dtype=dtype)


@pytest.mark.parametrize(("dtype", "shift"), [("float32", 0.02), ("bfloat16", 0.11), ("bfloat16", float("nan"))])
def test_an_engine_that_disagrees_does_not(tmp_path: Path, dtype: str, shift: float) -> None:
    with pytest.raises(BadPolicyError, match="disagree about log-probabilities"):
        check(tmp_path, engine(shift=shift), dtype=dtype)


def test_other_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadPolicyError, match=r"reads 'abc' as tokens \[1, 9\], the learner as \[1, 2, 3\]"):
        check(tmp_path, engine(token_ids=(1, 9)))


def test_texts_that_the_context_does_not_hold_are_left_out(tmp_path: Path) -> None:
    check(tmp_path, engine(), prompts=(LONG, PROMPT))


def test_an_engine_that_answers_with_an_error_fails(tmp_path: Path) -> None:
    async def ask(request: CompletionRequest) -> AsyncIterator[Any]:
        async def replies() -> AsyncIterator[Any]:
            yield SimpleNamespace(error="no")

        return replies()

    with pytest.raises(BadPolicyError, match="did not answer"):
        check(tmp_path, ask)


def test_float32_everywhere_is_held_to_less_than_the_runs_own_limit(tmp_path: Path) -> None:
    full = seal(write_small_policy(tmp_path / "v000001"))
    half = seal(write_small_policy(tmp_path / "v000002"), dtype="bfloat16")
    assert allowed_mismatch(full, "float32") == FLOAT32_MISMATCH
    assert allowed_mismatch(full, "bfloat16") == allowed_mismatch(half, "float32") == 0.1
