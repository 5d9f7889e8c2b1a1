"""What a policy makes of a few contexts, with its adapter and without: by that an engine sees whether it samples with it.

Shapes: P contexts, T tokens, K next tokens, V vocabulary. Log-probabilities are nats at temperature 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cluster.types import AdapterProbe
from learners.network.lora import adapter_off
from learners.network.models import PolicyWithCritic
from learners.network.trunk import ForwardSettings, hidden_states

NUM_CONTEXTS: Final = 4
NUM_NEXT_TOKENS: Final = 64  # the likeliest; an engine is asked for fewer, so that all of these are among them


def adapter_probe(
    network: PolicyWithCritic, token_ids: Sequence[int], settings: ForwardSettings, *, max_mismatch: float
) -> AdapterProbe:
    """The longest beginnings of `token_ids` as contexts. Call it on every rank where the policy is sharded."""
    lengths = range(max(1, len(token_ids) + 1 - NUM_CONTEXTS), len(token_ids) + 1)
    ask = partial(_next_logprobs, token_ids=token_ids, lengths=lengths, settings=settings)
    logprobs_PV, start_logprobs_PV = network.ask_policy(ask), network.ask_policy(partial(_without_adapter, ask=ask))
    next_PK = logprobs_PV.topk(min(NUM_NEXT_TOKENS, logprobs_PV.shape[1])).indices
    logprobs, start_logprobs = (
        tuple(dict(zip(tokens, numbers, strict=True)) for tokens, numbers in zip(next_PK.tolist(), rows, strict=True))
        for rows in (each_PV.gather(1, next_PK).tolist() for each_PV in (logprobs_PV, start_logprobs_PV))
    )
    return AdapterProbe(
        contexts=tuple(tuple(token_ids[:length]) for length in lengths),
        logprobs=logprobs,
        start_logprobs=start_logprobs,
        max_mismatch=max_mismatch,
    )


def _without_adapter(policy: PreTrainedModel, ask: partial[Tensor]) -> Tensor:
    with adapter_off(policy):
        return ask(policy)


@torch.no_grad()
def _next_logprobs(
    policy: PreTrainedModel, token_ids: Sequence[int], lengths: Sequence[int], settings: ForwardSettings
) -> Tensor:
    """logprobs_PV, after so many of the tokens."""
    ids_T = torch.tensor(token_ids, device=policy.device)
    hidden_PD = hidden_states(policy.base_model, ids_T[None], settings)[0, [length - 1 for length in lengths]]
    weight_VD = policy.get_output_embeddings().weight
    return (hidden_PD.to(settings.compute_dtype) @ weight_VD.to(settings.compute_dtype).t()).float().log_softmax(-1)
