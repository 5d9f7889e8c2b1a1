"""How strongly the policy is held to the reference, from one batch to the next. Plain numbers; imports nothing."""

MAX_ERROR = 0.2  # share of the target that one batch can be off, however far it is


def adaptive_kl_coef(
    kl_coef: float, *, kl_nats_per_completion: float, target_kl_nats_per_completion: float, num_completions: int, horizon: int
) -> float:
    """The coefficient for the next batch: up where the KL, summed over a completion's tokens, is above its target.

    `horizon` counts completions: over so many, a KL of 1.2 times the target or more raises the coefficient by a factor of e^0.2.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    error = min(max(kl_nats_per_completion / target_kl_nats_per_completion - 1, -MAX_ERROR), MAX_ERROR)
    return kl_coef * (1 + error * num_completions / horizon)
