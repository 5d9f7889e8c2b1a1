"""What the learner promises of a policy that it exports.

Shapes: T tokens of one text, D hidden units. Log-probabilities are nats at temperature 1, whatever the run samples at: an engine
reports these of a prompt.
"""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cluster.errors import DataError
from cluster.storage.serving_contract import ContractPrompt, ContractText
from learners.algorithms.logprobs import gather_logprobs
from learners.network.trunk import ForwardSettings, hidden_states


def contract_prompts(
    policy: PreTrainedModel, texts: Sequence[ContractText], settings: ForwardSettings
) -> tuple[ContractPrompt, ...]:
    """The texts with what the policy makes of them. Raises `DataError` where that is not finite."""
    prompts = []
    for text in texts:
        logprobs = text_logprobs(policy, text.token_ids, settings)
        if not all(map(math.isfinite, logprobs)):
            raise DataError(
                "the policy gives log-probabilities that are not finite, so it is not exported; go on from an earlier checkpoint "
                "with a lower learning rate"
            )
        prompts.append(ContractPrompt(text=text.text, token_ids=text.token_ids, logprobs=logprobs))
    return tuple(prompts)


@torch.no_grad()
def text_logprobs(policy: PreTrainedModel, token_ids: Sequence[int], settings: ForwardSettings) -> tuple[float, ...]:
    """Of each token but the first, after those before it."""
    ids_T = torch.tensor(token_ids, device=policy.device)
    hidden_TD = hidden_states(policy.base_model, ids_T[None], settings)[0]
    logprobs_T, _ = gather_logprobs(
        hidden_TD[:-1],
        policy.get_output_embeddings().weight,
        ids_T[1:],
        temperature=1.0,
        chunk_tokens=settings.chunk_tokens,
        compute_dtype=settings.compute_dtype,
    )
    return tuple(logprobs_T.tolist())
