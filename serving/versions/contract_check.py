"""Whether an engine reads and judges a policy's texts as the learner that exported it does."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from ray.serve.llm.openai_api_models import CompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionResponse

from actors.config import DType
from cluster.storage.serving_contract import ContractPrompt, ServingContract
from serving.versions.policy_check import BadPolicyError

# Where learner, weights and engine are all float32 they differ by rounding alone. The limit is a choice: the tiny model keeps it
# on a real engine, larger ones have not been measured. Elsewhere a bfloat16 logit has 8 bits, and the run's own limit holds.
FLOAT32_MISMATCH: Final = 0.01  # nats a token, mean absolute difference

Ask = Callable[[CompletionRequest], Awaitable[AsyncIterator[Any]]]


def allowed_mismatch(contract: ServingContract, engine_dtype: DType) -> float:
    """Mean absolute difference of log-probabilities, in nats a token, that is not held against a policy."""
    if {contract.weights_dtype, contract.compute_dtype, engine_dtype} == {"float32"}:
        return min(FLOAT32_MISMATCH, contract.max_logprob_mismatch)
    return contract.max_logprob_mismatch


async def check_contract(contract: ServingContract, ask: Ask, *, model_id: str, engine_dtype: DType, max_tokens: int) -> None:
    """Raise `BadPolicyError` where the engine's tokens differ, or its log-probabilities by more than is allowed.

    `max_tokens`: of prompt and completion together; longer texts are left out. `ask` sends a request to the engine.
    """
    differences: list[float] = []
    for prompt in contract.prompts:
        if len(prompt.token_ids) >= max_tokens:
            continue
        token_ids, logprobs = await _read(prompt, ask, model_id)
        if token_ids != prompt.token_ids:
            raise BadPolicyError(
                f"policy version {contract.policy_version}: the engine reads {prompt.text!r} as tokens {list(token_ids)}, the "
                f"learner as {list(prompt.token_ids)}; the tokenizer is another",
                reason="contract",
            )
        differences += [abs(ours - theirs) for ours, theirs in zip(logprobs, prompt.logprobs, strict=True)]
    if not differences:
        return
    mean, allowed = math.fsum(differences) / len(differences), allowed_mismatch(contract, engine_dtype)
    if not mean <= allowed:  # also where it is not a number
        raise BadPolicyError(
            f"policy version {contract.policy_version}: engine and learner disagree about log-probabilities by {mean:.3g} nats a "
            f"token on average, more than {allowed:g}; the engine computes in {engine_dtype}, the learner in "
            f"{contract.compute_dtype}, and the weights are {contract.weights_dtype}",
            reason="contract",
        )


async def _read(prompt: ContractPrompt, ask: Ask, model_id: str) -> tuple[tuple[int, ...], list[float]]:
    """The engine's tokens of the text, and the log-probability of each but the first, in nats."""
    request = CompletionRequest(
        model=model_id,
        prompt=prompt.text,
        add_special_tokens=False,
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,  # of the prompt's own tokens
        return_token_ids=True,
    )
    replies = [reply async for reply in await ask(request)]
    reply = replies[-1]
    if not isinstance(reply, CompletionResponse):
        raise BadPolicyError(f"the engine did not answer {prompt.text!r}: {reply}", reason="contract")
    token_ids = tuple(reply.choices[0].prompt_token_ids or ())
    places = reply.choices[0].prompt_logprobs or []
    return token_ids, [place[token].logprob for token, place in zip(token_ids[1:], places[1:], strict=True)]
