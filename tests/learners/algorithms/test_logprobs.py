"""Chunked log-probabilities against the full softmax."""

import pytest
import torch
from torch.testing import assert_close

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
