"""Reference of the metrics: every name that the code logs, with what it means."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("actors", "cluster", "learners")
STAGES = "buffer|checkpoint|episode|optim|planning|policy|pretraining|reward_model|rollout|score|time|value"
METRIC = re.compile(rf"({STAGES})/[a-z0-9_*]+")

# A star stands for what the code puts there: the name of a scorer or of a stage.
MEANINGS = {
    "buffer/groups_filled_up": "Groups without contrast that the step took after `group_filter.max_rounds`.",
    "buffer/groups_without_contrast": "Groups whose completions all have one score. Dynamic sampling leaves them out.",
    "buffer/prompts_asked_ahead": "Prompts beyond `prompts_per_step` that the first round of dynamic sampling drew.",
    "buffer/resampling_rounds": "Further rounds of prompts that dynamic sampling drew.",
    "checkpoint/failed": "1 where the checkpoint could not be written.",
    "checkpoint/write_s": "Seconds to write one checkpoint. Training goes on meanwhile.",
    "episode/cut_frac": "Share of the episodes since the last line that a time limit cut.",
    "episode/discounted_return_mean": "The same as `episode/return_mean`, each reward times `gamma` to the steps before it.",
    "episode/discounted_return_std": "Standard deviation of those.",
    "episode/epsilon": "Share of actions that are drawn evenly.",
    "episode/evaluated_return_mean": "Sum of rewards without exploration, mean over `evaluation.num_interim_episodes` episodes.",
    "episode/evaluated_return_std": "Its standard deviation over those episodes.",
    "episode/expected_return": "Expected discounted return of the learned policy without exploration: exact, from the model.",
    "episode/length_mean": "Steps of an episode.",
    "episode/return_mean": "Sum of an episode's rewards, mean over the episodes since the last line, exploration and all.",
    "episode/return_std": "Standard deviation of those.",
    "episode/step_size": "Share of the error by which a value moves.",
    "optim/grad_norm": "Norm of the gradient before clipping, mean over the optimizer steps of a batch.",
    "optim/learning_rate": "Learning rate of the trunk at the last optimizer step.",
    "optim/loss": "The whole loss: policy, value, entropy and KL terms with their coefficients.",
    "optim/skipped_in_a_row": "Optimizer steps in a row whose loss or gradient was not finite. At 5 the run ends.",
    "optim/skipped_steps": "Optimizer steps of this batch that were skipped because a number was not finite.",
    "planning/changed_states": "States whose action policy iteration changed in the sweep.",
    "planning/max_change": "Largest change of a state's value in the sweep.",
    "planning/start_value": "Value of the start distribution.",
    "policy/advantage_zero_frac": "Share of tokens with an advantage of exactly zero. They teach nothing.",
    "policy/approx_kl": "Nats a token between the weights at batch start and now (k3); with RLlib nats an action, exact.",
    "policy/clip_frac": "Share of tokens whose ratio was clipped.",
    "policy/entropy": "Nats a token, over the whole vocabulary, where `entropy_coef` is above 0; with RLlib nats an action.",
    "policy/entropy_coef": "Score points a nat, of RLlib's SAC, which moves it.",
    "policy/kl_coef": "Score points a nat. It moves under `kl.control: adaptive`.",
    "policy/kl_penalty": "KL to the reference as a loss term, nats a token.",
    "policy/loss": "The policy's own term of the loss.",
    "policy/minibatches_left_out": "Minibatches that were skipped because `target_kl` was reached.",
    "policy/mismatch_abs_mean": "Mean absolute difference between engine and learner, nats a token.",
    "policy/mismatch_capped_frac": "Share of tokens whose importance weight was capped.",
    "policy/mismatch_kl": "KL between the engine's and the learner's distribution, nats a token.",
    "policy/ref_kl_nats_per_completion": "KL to the reference, summed over a completion's tokens.",
    "policy/rejected_frac": "Share of tokens whose importance weight is 0.",
    "policy/sampled_entropy": "Negative log-probability of the sampled tokens, nats a token.",
    "policy/version": "Optimizer steps completed.",
    "pretraining/logprob_mean": "Log-probability of the training text's tokens, nats a token: minus the loss.",
    "reward_model/loss": "Bradley-Terry loss over all compared pairs of a batch.",
    "reward_model/texts_per_s": "Texts that training reads in a second.",
    "reward_model/train_accuracy": "Share of the batch's pairs in the order of the ratings.",
    "rollout/completion_tokens_mean": "Mean length of a completion.",
    "rollout/cut_prompts": "Prompts that were cut because others were complete first. Logged if `extra_prompts_per_step` is set.",
    "rollout/env_steps_per_s": "Environment steps a second, of a whole iteration: sampling and learning.",
    "rollout/failed_frac": "Share of trajectories whose request failed in the engine. It counts towards `max_unscored_frac`.",
    "rollout/mixed_versions_frac": "Share of trajectories sampled by several policy versions. Logged if `asynchronous` is set.",
    "rollout/staleness_max": "Publications by which the weights of the oldest token are behind the learner's. Logged likewise.",
    "rollout/staleness_mean": "The same, mean over tokens.",
    "rollout/tokens_per_s": "Generated tokens a second, over all engines.",
    "rollout/truncated_frac": "Share of completions cut at `max_completion_tokens`.",
    "score/*_mean": "Mean score of one scorer, before its weight.",
    "score/greedy_mean": "Mean score of greedy completions. ReMax uses them as its baseline.",
    "score/mean": "Mean reward of the trajectories that the step trained on, as sampled.",
    "score/sampled_mean": "Mean reward of everything sampled, with groups that were left out.",
    "score/std": "Standard deviation of `score/mean`'s rewards.",
    "score/unscored_frac": "Share of trajectories without a score. Above `max_unscored_frac` the run ends.",
    "time/*_s": "Wall seconds of a stage: `rollout`, `learn`, `publish`.",
    "time/prepare_s": "Of `learn`: forward passes at batch start, rewards and advantages.",
    "time/update_s": "Of `learn`: the optimizer steps.",
    "value/clip_frac": "Share of tokens where the clipped value loss is the larger one.",
    "value/explained_variance": "1 is a critic that predicts every return, 0 one that predicts their mean.",
    "value/loss": "Value loss, with its factor 1/2. RLlib's PPO: without the factor; its DQN and SAC: loss of action values.",
    "value/q_mean": "Mean value of the actions that a batch took.",
    "value/td_error_mean": "Mean absolute error of a batch against its targets.",
}
NAMED_BY_A_STAR = {"time/rollout_s", "time/publish_s"}  # in reports; the code logs them as time/*_s

INTRODUCTION = """# Metrics

What each number in `metrics.jsonl` and TensorBoard means. A line of `metrics.jsonl` is one step:
`{"step": 3, "score/mean": 0.41, ...}`. A number that is not finite is `null`. Names are `stage/quantity_unit`;
KL and entropy are in nats, shares (`_frac`) run from 0 to 1.

Lines with a `stage` hold one event: `evaluation` (a measurement on held-out prompts), `checkpoint` (one was written) and
`reward model` (a step of its training).
"""


def metric_page() -> str:
    """Markdown."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in MEANINGS.items()]
    return "\n".join([INTRODUCTION, "| metric | meaning |", "|---|---|", *rows, ""])


def logged_metrics() -> set[str]:
    """Every metric that stands in the source; a star for what an f-string fills in."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {text for path in paths for text in _texts(ast.parse(path.read_text(encoding="utf-8"))) if METRIC.fullmatch(text)}


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)
