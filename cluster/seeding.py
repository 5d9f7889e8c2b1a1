"""Seeds by name: every random draw derives its seed from what it is for, so order and placement do not matter."""

import hashlib

MAX_SEED = 2**31 - 1  # the widest range that numpy, torch and vLLM all accept


def derive_seed(*parts: int | str) -> int:
    """A seed in 0..MAX_SEED from a path of names and numbers, for example `derive_seed(run_seed, "prompts", epoch)`."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_SEED + 1)
