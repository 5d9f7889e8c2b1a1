"""Activations of a layer computed again in the backward pass, where they would else be kept from the forward pass.

Hugging Face's own switch does nothing in evaluation mode, in which learners keep their networks. Source: arXiv:1604.06174.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from actors.attention import attention_for
from cluster.errors import ConfigError


def recompute_activations(trunk: PreTrainedModel) -> None:
    """Of each trained layer keep what comes in, and nothing else. Call it once, on a trunk whose copies are made already."""
    layers = dict(trunk.named_children()).get("layers")
    if layers is None:
        raise ConfigError(
            f"learner.workers.activation_checkpointing computes decoder layers again, but {type(trunk).__name__} has no "
            "`layers`; set it to false"
        )
    for layer in layers:
        if any(parameter.requires_grad for parameter in layer.parameters()):
            layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Any, hidden_RSD: torch.Tensor, **others: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(hidden_RSD, **others)
    longest = others.get("max_length_q", hidden_RSD.shape[1])  # of packed sequences
    contexts = partial(_contexts, hidden_RSD.device.type, num_tokens=longest)
    return checkpoint(forward, hidden_RSD, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **others)


def _contexts(device_type: str, *, num_tokens: int) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward pass, which chooses for itself, and around its repetition, which must choose the same kernel."""
    return nullcontext(), attention_for(device_type, num_tokens=num_tokens)
