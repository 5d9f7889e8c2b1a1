"""Chunked log-probabilities against the full softmax."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import learners.algorithms.logprobs as logprobs_module
from learners.algorithms.logprobs import gather_logprobs

pytestmark = pytest.mark.numeric

NUM_POSITIONS, NUM_HIDDEN, VOCABULARY = 11, 6, 17


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_POSITIONS, NUM_HIDDEN, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, NUM_HIDDEN, dtype=dtype, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (NUM_POSITIONS,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_chunks_equal_the_full_softmax_with_gradients(dtype: torch.dtype, with_entropy: bool, chunk_tokens: int) -> None:
    hidden, weight, targets = _inputs(dtype)
    upstream = torch.linspace(-1, 1, NUM_POSITIONS, dtype=dtype)
    logprobs, entropy = gather_logprobs(
        hidden, weight, targets, temperature=0.7, chunk_tokens=chunk_tokens, compute_dtype=dtype, with_entropy=with_entropy
    )
    loss = (logprobs * upstream).sum() + (0 if entropy is None else (entropy * upstream.square()).sum())
    gradients = torch.autograd.grad(loss, [hidden, weight])

    full = torch.log_softmax(hidden @ weight.t() / 0.7, dim=-1)
    full_logprobs = full.gather(1, targets[:, None]).squeeze(1)
    full_entropy = -(full.exp() * full).sum(-1)
    full_loss = (full_logprobs * upstream).sum() + ((full_entropy * upstream.square()).sum() if with_entropy else 0)

    assert_close(logprobs, full_logprobs)
    if entropy is not None:
        assert_close(entropy, full_entropy)
    for gradient, expected in zip(gradients, torch.autograd.grad(full_loss, [hidden, weight]), strict=True):
        assert_close(gradient, expected)


def test_bfloat16_products_keep_float32_sums() -> None:
    hidden, weight, targets = _inputs(torch.float32)
    logprobs, _ = gather_logprobs(hidden, weight, targets, temperature=1.0, chunk_tokens=4, compute_dtype=torch.bfloat16)
    full = torch.log_softmax((hidden.bfloat16() @ weight.bfloat16().t()).float(), dim=-1)
    assert_close(logprobs, full.gather(1, targets[:, None]).squeeze(1))
    assert logprobs.dtype == torch.float32


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_a_frozen_head_has_the_same_gradient_without_computing_its_logits_again(
    chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = _inputs(torch.float64)
    upstream = torch.linspace(-1, 1, NUM_POSITIONS, dtype=torch.float64)
    chunks: list[int] = []
    logits_of = logprobs_module._logits

    def counted(hidden_CD: torch.Tensor, *rest: Any) -> torch.Tensor:
        chunks.append(len(hidden_CD))
        return logits_of(hidden_CD, *rest)

    monkeypatch.setattr(logprobs_module, "_logits", counted)
    results, positions = [], []
    for head in (weight, weight.detach()):
        chunks.clear()
        settings = {"temperature": 0.7, "chunk_tokens": chunk_tokens, "compute_dtype": torch.float64}
        logprobs, entropy = gather_logprobs(hidden, head, targets, **settings)
        (gradient,) = torch.autograd.grad((logprobs * upstream).sum(), [hidden])
        assert entropy is None
        results.append((logprobs, gradient))
        positions.append(sum(chunks))
    assert positions == [2 * NUM_POSITIONS, NUM_POSITIONS]
    for ours, expected in zip(results[1], results[0], strict=True):
        assert_close(ours, expected)


def test_a_frozen_head_keeps_nothing_where_no_gradient_is_asked_for() -> None:
    hidden, weight, targets = _inputs(torch.float64)
    with torch.no_grad():
        logprobs, _ = gather_logprobs(
            hidden, weight.detach(), targets, temperature=1.0, chunk_tokens=4, compute_dtype=torch.float64
        )
    assert logprobs.grad_fn is None
    assert_close(logprobs, torch.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None]).squeeze(1).detach())
