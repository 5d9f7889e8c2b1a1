"""Which attention kernel a network uses where it learns or judges."""

from contextlib import AbstractContextManager, nullcontext


def short_sequence_attention(device_type: str) -> AbstractContextManager[None]:
    """On CPU, plain matrix products; elsewhere the library's choice.

    The backward pass of torch's CPU flash attention calls a small matrix product for every head of every sequence: at 39
    tokens a sequence it took 45 % of a backward pass of SmolLM2-135M, which plain products shorten from 4.5 to 2.5 s.
    """
    if device_type != "cpu":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
