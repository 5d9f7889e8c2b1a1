"""The records that one sample passes through, in order. All are frozen, complete at birth, and travel between processes.

Task -> Prompt -> Completion -> Trajectory -> TrajectoryGroup -> ScoredGroup -> ScoredBatch -> UpdateResult.
Log-probabilities are in nats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.errors import DataError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. Produced by a `TaskSet`, consumed by `render_prompt` and by reward functions."""

    task_id: str  # stable across runs
    messages: tuple[Message, ...]
    reference: str = ""  # the known answer; empty where the task has none

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataError(f"task {self.task_id!r} has no messages; give it at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered task. Produced by `render_prompt`, consumed by generators."""

    task: Task
    text: str  # what `token_ids` decode to
    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise DataError(f"task {self.task.task_id!r} renders to no tokens; check its messages and the chat template")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine returned for one prompt. Produced by a generator, consumed by scorers and the learner."""

    token_ids: tuple[int, ...]  # includes the end-of-sequence token when finish_reason is "stop"
    rollout_logprobs: tuple[float, ...]  # [len(token_ids)] nats, under the distribution that was sampled
    text: str  # without special tokens
    finish_reason: FinishReason
    policy_version: int  # optimizer steps completed by the sampling weights

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise DataError("completion has no tokens; an immediate end of sequence counts as one token")
        if len(self.token_ids) != len(self.rollout_logprobs):
            raise DataError(
                f"completion has {len(self.token_ids)} tokens but {len(self.rollout_logprobs)} logprobs; "
                "ask the engine for one logprob per sampled token"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One prompt with one completion. The policy chose exactly the completion's tokens."""

    prompt: Prompt
    sample_index: int  # 0..samples_per_prompt-1
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryGroup:
    """What the samples of one prompt came to. Produced by a generator, consumed by scorers."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]  # [G], in order of sample_index; those that failed are missing
    failures: Mapping[int, str] = field(default_factory=dict)  # sample_index -> why the engine gave no completion for it
    attempt: int = 1  # generators that were asked; more than 1 where some were lost over it

    def __post_init__(self) -> None:
        if not self.num_samples:
            raise DataError("a trajectory group is empty; sampling.samples_per_prompt must be at least 1")
        both = [each.sample_index for each in self.trajectories if each.sample_index in self.failures]
        if both:
            raise DataError(
                f"samples {both} of task {self.prompt.task.task_id!r} have a completion and failed; it is one or the other"
            )

    @property
    def num_samples(self) -> int:
        """Completions that were asked for."""
        return len(self.trajectories) + len(self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScore:
    """The score of one step of a completion, at its last token."""

    token_index: int  # into the completion
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one scorer makes of one trajectory. Produced by a `Scorer`, consumed by `ScorerPools`."""

    value: float
    steps: tuple[StepScore, ...] = ()  # what of `value` belongs to single steps and not to the completion's end


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """A scorer has no score for a trajectory, which then counts for nothing, never as a zero. In place of a `Score`."""

    problem: str  # what happened, with the scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The score of one trajectory. Produced by `ScorerPools`, consumed by the learner; the breakdown goes to the ledger."""

    total: float  # sum over scorers of weight * score
    breakdown: Mapping[str, float]  # scorer name -> unweighted score
    steps: tuple[StepScore, ...] = ()  # weighted; what of `total` belongs to single steps and not to the completion's end

    def __post_init__(self) -> None:
        steps = {f"step at token {step.token_index}": step.score for step in self.steps}
        scores = {"total": self.total, **self.breakdown, **steps}
        bad = {name: score for name, score in scores.items() if not math.isfinite(score)}
        if bad:
            raise DataError(f"reward is not finite: {bad}; check the scorer of that name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group with the rewards of its trajectories. Produced by `ScorerPools`, consumed by the driver."""

    group: TrajectoryGroup  # as it was sampled
    rewards: tuple[Reward, ...]  # [G], of `trajectories`
    problems: Mapping[int, str] = field(default_factory=dict)  # sample_index -> why that trajectory has no reward
    greedy: "ScoredGroup | None" = None  # the prompt's greedy completion, where the method has its score as the baseline

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.trajectories):
            raise DataError(f"{len(self.trajectories)} trajectories but {len(self.rewards)} rewards in one group")

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """[G] those that have a reward."""
        return tuple(each for each in self.group.trajectories if each.sample_index not in self.problems)

    @property
    def greedy_score(self) -> float:
        """Of the greedy completion; 0 where there is none, or where it has no reward."""
        return self.greedy.rewards[0].total if self.greedy is not None and self.greedy.rewards else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """All trajectories of one driver step. Produced by the driver, consumed by `PolicyLearnerHandle.submit`."""

    step: int
    groups: tuple[ScoredGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one learner update did. `policy_version` counts optimizer steps completed."""

    policy_version: int
    metrics: Mapping[str, float]  # `stage/quantity[_unit]`


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveReport:
    """How the writing of a checkpoint ended. Produced by the learner, consumed by the driver."""

    step: int  # steps completed
    seconds: float
    problem: str  # empty where the checkpoint is on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What the kernel changes with any write to a file, and with any other file in its place. Made by `stamp_of`."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int  # unlike the time of modification, no call can set it


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """Weights that wait in shared memory. Produced by the learner, consumed by every generator, which loads them."""

    policy_version: int
    path: str  # a safetensors file with Hugging Face names
    checksum: str  # sha256 hex of the file
    stamp: FileStamp  # of the file as it was when `checksum` was taken


@dataclass(frozen=True, slots=True, kw_only=True)
class SentWeights:
    """Weights that went over a device. Produced by the learner, consumed by every generator, which confirms that it has them."""

    policy_version: int
    checksum: str  # hex, of the tensors as they were sent: `actors.device_wire.BitChecksum`


PublishedWeights = WeightFile | SentWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How a generator samples. Sample i of a prompt draws with a seed derived from (seed, task_id, i)."""

    temperature: float  # 0 is greedy
    top_p: float
    max_completion_tokens: int
    samples_per_prompt: int
    seed: int
