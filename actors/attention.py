"""Which attention kernel a network uses where it learns or judges."""

from contextlib import AbstractContextManager, nullcontext

# Sequences up to this length use plain matrix products on CPU. The backward pass of torch's CPU flash attention calls a small
# matrix product for every head of every sequence. Attention of SmolLM2-135M in bfloat16, forward and backward, CPU time of
# 2,048 tokens on an AMD EPYC with AVX-512: plain 28 ms and flash 49 ms at 32 tokens a sequence, 48 and 66 at 128, 56 and 71
# at 160; 68 and 57 at 192, 177 and 113 at 512. Plain products also keep a square of the length for every head and layer:
# 4,096 tokens in sequences of 512 need 0.15 GB more in each layer, with what the backward pass needs.
MAX_PLAIN_TOKENS = 160


def attention_for(device_type: str, *, num_tokens: int) -> AbstractContextManager[None]:
    """`num_tokens`: of the longest sequence. On CPU, plain matrix products for short sequences; else the library's choice."""
    if device_type != "cpu" or num_tokens > MAX_PLAIN_TOKENS:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
