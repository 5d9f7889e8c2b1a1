"""Texts that a language model goes on with, and how far one model is from another on them.

Shapes: B texts, T tokens, V vocabulary. Log-probabilities and KL in nats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learners.language_models.language_model import LanguageModel

TokenIds = Sequence[int]


@torch.no_grad()
def sample(
    model: LanguageModel, prompts: Sequence[TokenIds], *, max_tokens: int, temperature: float, seed: int
) -> list[list[int]]:
    """A completion of each prompt, with the end-of-sequence token where it has one. Temperature 0 takes the likeliest token.

    The whole text is read again for each token: right for small models, and the same for every kind.
    """
    generator = torch.Generator().manual_seed(seed)
    completions: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(max_tokens):
        ids_BT, lengths_B = padded([[*prompts[index], *completions[index]] for index in running], model)
        hidden_BTD = model.hidden_states(ids_BT)
        logits_BV = model.logits(hidden_BTD[torch.arange(len(running)), lengths_B - 1])
        for index, token_id in zip(running, _drawn(logits_BV, temperature, generator).tolist(), strict=True):
            completions[index].append(token_id)
        running = [index for index in running if completions[index][-1] != model.vocabulary.end_id]
        if not running:
            break
    return completions


@torch.no_grad()
def completion_divergence(
    policy: LanguageModel, start: LanguageModel, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> tuple[Tensor, Tensor]:
    """For each completion of `policy`: KL(policy || start) of the next token summed over its places, and its log-probability
    under `start`. [B] each."""
    ids_BT, _ = padded([[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)], policy)
    logprobs_BTV, start_logprobs_BTV = (model(ids_BT).log_softmax(-1)[:, :-1] for model in (policy, start))
    place_T = torch.arange(ids_BT.shape[1] - 1)
    first_B = torch.tensor([len(prompt) - 1 for prompt in prompts])  # the token here predicts the completion's first
    num_B = torch.tensor([len(completion) for completion in completions])
    chosen_BT = (place_T >= first_B[:, None]) & (place_T < (first_B + num_B)[:, None])
    kl_BT = (logprobs_BTV.exp() * (logprobs_BTV - start_logprobs_BTV)).sum(-1)
    taken_BT = start_logprobs_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    return torch.where(chosen_BT, kl_BT, 0.0).sum(-1), torch.where(chosen_BT, taken_BT, 0.0).sum(-1)


def padded(texts: Sequence[TokenIds], model: LanguageModel) -> tuple[Tensor, Tensor]:
    """(ids_BT with padding on the right, lengths_B)."""
    rows = [torch.tensor(text, dtype=torch.long) for text in texts]
    return pad_sequence(rows, batch_first=True, padding_value=model.vocabulary.padding_id), torch.tensor([*map(len, rows)])


def _drawn(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
