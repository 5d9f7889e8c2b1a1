"""RLlib's results under our names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

EPISODE_RETURNS, EPISODE_LENGTHS = "rayward_episode_returns", "rayward_episode_lengths"  # one number an episode

LEARNER_METRICS = {  # of RLlib's learners, as far as an algorithm has them
    "policy_loss": "policy/loss",
    "entropy": "policy/entropy",
    "mean_kl_loss": "policy/approx_kl",
    "curr_kl_coeff": "policy/kl_coef",
    "alpha_value": "policy/entropy_coef",
    "vf_loss": "value/loss",
    "vf_loss_unclipped": "value/loss",  # of PPO, which has both: the last one counts
    "vf_explained_var": "value/explained_variance",
    "vf_explained_variance": "value/explained_variance",
    "qf_loss": "value/loss",
    "qf_mean": "value/q_mean",
    "td_error_mean": "value/td_error_mean",
    "gradients_default_optimizer_global_norm": "optim/grad_norm",
    "default_optimizer_learning_rate": "optim/learning_rate",
}


def record_episode(*, episode: Any, prev_episode_chunks: Sequence[Any], metrics_logger: Any, **_: Any) -> None:
    """RLlib calls it at the end of each episode, in the env runner. RLlib itself keeps no more than means."""
    chunks = [*prev_episode_chunks, episode]
    metrics_logger.log_value(EPISODE_RETURNS, float(sum(chunk.get_return() for chunk in chunks)), reduce="item_series")
    metrics_logger.log_value(EPISODE_LENGTHS, episode.t, reduce="item_series")  # chunks overlap by a step


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Of one iteration. Episodes have metrics where one ended, learners where they have learned."""
    runners, learner = result.get(ENV_RUNNER_RESULTS, {}), result.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
    metrics = {}
    if returns := runners.get(EPISODE_RETURNS):
        metrics["episode/return_mean"] = float(np.mean(returns))
        metrics["episode/return_std"] = float(np.std(returns))
        metrics["episode/length_mean"] = float(np.mean(runners[EPISODE_LENGTHS]))
    return metrics | {ours: float(learner[theirs]) for theirs, ours in LEARNER_METRICS.items() if theirs in learner}
