"""Log-probabilities of given tokens without ever holding all logits.

Shapes: N positions, C positions of one chunk, D hidden units, V vocabulary. Nats. logits = hidden @ weight.T / temperature.
Only one [C, V] block exists at a time, in the forward and, recomputed, in the backward pass. Where the weight is frozen nothing
is recomputed: the gradient of a position is one number times a vector that the forward pass knows. Matrix products run in
`compute_dtype`; the softmax and all sums run in float32 (float64 for float64 inputs).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    compute_dtype: torch.dtype,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(log-probability of each target [N], entropy of each position's distribution [N] or None), both with gradient."""
    if not with_entropy and torch.is_grad_enabled() and hidden_ND.requires_grad and not weight_VD.requires_grad:
        return _FrozenHeadLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature, chunk_tokens, compute_dtype), None
    logprobs_N, entropy_N = _GatherLogprobs.apply(
        hidden_ND, weight_VD, targets_N, temperature, chunk_tokens, compute_dtype, with_entropy
    )
    return logprobs_N, entropy_N if with_entropy else None


class _GatherLogprobs(torch.autograd.Function):
    """d logprob / d logits = onehot - p;  d entropy / d logits = -p * (log p + entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        sum_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        weight = weight_VD.to(compute_dtype)
        log_normalizer_N = torch.empty(len(targets_N), dtype=sum_dtype, device=hidden_ND.device)
        logprobs_N = torch.empty_like(log_normalizer_N)
        entropy_N = torch.zeros_like(log_normalizer_N)
        chunks = _log_softmaxes(hidden_ND, weight, targets_N, temperature, chunk_tokens, sum_dtype)
        for part, log_p_CV, logprobs_C, log_normalizer_C in chunks:
            logprobs_N[part], log_normalizer_N[part] = logprobs_C, log_normalizer_C
            if with_entropy:
                entropy_N[part] = -(log_p_CV.exp() * log_p_CV).sum(dim=-1)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, log_normalizer_N, entropy_N)
        ctx.settings = (temperature, chunk_tokens, compute_dtype, with_entropy)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs_N, grad_entropy_N = grad_outputs
        hidden_ND, weight_VD, targets_N, log_normalizer_N, entropy_N = ctx.saved_tensors
        temperature, chunk_tokens, compute_dtype, with_entropy = ctx.settings
        weight = weight_VD.to(compute_dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None  # a frozen head has none
        for part in _chunks(len(targets_N), chunk_tokens):
            log_p_CV = _logits(hidden_ND[part], weight, temperature, log_normalizer_N.dtype).sub_(log_normalizer_N[part, None])
            grad_logprobs_C1 = grad_logprobs_N[part, None] / temperature
            if with_entropy:
                p_CV = log_p_CV.exp()
                spread_CV = p_CV * log_p_CV.add_(entropy_N[part, None])
                grad_logits_CV = -(p_CV * grad_logprobs_C1) - spread_CV * (grad_entropy_N[part, None] / temperature)
                grad_logits_CV.scatter_add_(1, targets_N[part, None], grad_logprobs_C1.to(grad_logits_CV.dtype))
                scale_C1 = torch.ones_like(grad_logprobs_C1)
            else:
                # The gradient of a position is one number times (onehot - p): scaling [C, D] is cheaper than scaling [C, V].
                grad_logits_CV = _onehot_minus_p(log_p_CV, targets_N[part])
                scale_C1 = grad_logprobs_C1
            block = grad_logits_CV.to(compute_dtype)
            grad_hidden_ND[part] = ((block @ weight).to(scale_C1.dtype) * scale_C1).to(hidden_ND.dtype)
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, block.t(), (hidden_ND[part] * scale_C1).to(compute_dtype))
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None


class _FrozenHeadLogprobs(torch.autograd.Function):
    """d logprob / d hidden = (onehot - p) @ weight / temperature, kept from the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
    ) -> Tensor:
        sum_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        weight = weight_VD.to(compute_dtype)
        logprobs_N = torch.empty(len(targets_N), dtype=sum_dtype, device=hidden_ND.device)
        slope_ND = torch.empty(hidden_ND.shape, dtype=sum_dtype, device=hidden_ND.device)
        for part, log_p_CV, logprobs_C, _ in _log_softmaxes(hidden_ND, weight, targets_N, temperature, chunk_tokens, sum_dtype):
            logprobs_N[part] = logprobs_C
            grad_logits_CV = _onehot_minus_p(log_p_CV, targets_N[part])
            slope_ND[part] = (grad_logits_CV.to(compute_dtype) @ weight).to(sum_dtype) / temperature
        ctx.save_for_backward(slope_ND)
        ctx.hidden_dtype = hidden_ND.dtype
        return logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope_ND,) = ctx.saved_tensors
        return (slope_ND * grad_outputs[0].unsqueeze(1)).to(ctx.hidden_dtype), None, None, None, None, None


def _log_softmaxes(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float, chunk_tokens: int, sum_dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Of each chunk: its positions, log p [C, V] for the caller to overwrite, log p of the targets and the log-normalizer [C]."""
    for part in _chunks(len(targets_N), chunk_tokens):
        targets_C1 = targets_N[part, None]
        logits_CV = _logits(hidden_ND[part], weight_VD, temperature, sum_dtype)
        target_logits_C = logits_CV.gather(1, targets_C1).squeeze(1)
        # log_softmax is one fused kernel; logsumexp would write the block several times.
        log_p_CV = torch.log_softmax(logits_CV, dim=-1)
        del logits_CV  # the caller's work needs its space
        logprobs_C = log_p_CV.gather(1, targets_C1).squeeze(1)
        yield part, log_p_CV, logprobs_C, target_logits_C - logprobs_C


def _onehot_minus_p(log_p_CV: Tensor, targets_C: Tensor) -> Tensor:
    """d logprob / d logits, in the memory of log p."""
    return log_p_CV.exp_().neg_().scatter_add_(1, targets_C[:, None], torch.ones_like(log_p_CV[:, :1]))


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """In place: of a large vocabulary, [V, D] is more than all layers take."""
    if total_VD.dtype == left_VC.dtype:
        total_VD.addmm_(left_VC, right_CD)
    else:
        total_VD += left_VC @ right_CD


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float, sum_dtype: torch.dtype) -> Tensor:
    """Fresh [C, V] block that the caller may overwrite."""
    logits_CV = (hidden_CD.to(weight_VD.dtype) @ weight_VD.t()).to(sum_dtype)
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


def _chunks(num_positions: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, min(start + chunk_tokens, num_positions)) for start in range(0, num_positions, chunk_tokens)]
