"""The records that one sample passes through, in order. All are frozen, complete at birth, and travel between processes.

Task -> Prompt -> Completion and Segment -> Trajectory and TrajectoryTokens -> TrajectoryGroup -> ScoredGroup -> ScoredBatch
-> UpdateResult. Log-probabilities are in nats. What is one number a token is a numpy array, read-only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cluster.errors import DataError
from cluster.messages import Message

FinishReason = Literal["stop", "length"]
IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
EachT = TypeVar("EachT")
StoredT = TypeVar("StoredT", covariant=True)


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """What the policy wrote in answer to one prompt, for whoever judges or reads it. Produced by a generator.

    Shapes: A tokens that the policy chose.
    """

    token_ids: IntArray  # [A]; includes the end-of-sequence token when finish_reason is "stop"
    text: str  # without special tokens
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        _keep(self.token_ids, np.int32)
        if not len(self.token_ids):
            raise DataError("completion has no tokens; an immediate end of sequence counts as one token")

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One prompt with one completion, as text. Produced by a generator, consumed by scorers, reward functions and the ledger."""

    prompt: Prompt
    sample_index: int  # 0..samples_per_prompt-1
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Neighbouring tokens that one version of the policy chose."""

    num_tokens: int
    policy_version: int  # optimizer steps completed by the sampling weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """Tokens in one context, some of which the policy chose. Produced by a generator, consumed by the learner.

    Shapes: S tokens, of which A were chosen. Those in between came from outside: the prompt, and what an environment said.
    """

    token_ids: IntArray  # [S]
    action_mask: BoolArray  # [S] whether the policy chose the token
    rollout_logprobs: FloatArray  # [A] nats, under the distribution that was sampled
    stretches: tuple[Stretch, ...]  # of the A tokens, in order

    def __post_init__(self) -> None:
        _keep(self.token_ids, np.int32)
        _keep(self.action_mask, np.bool_)
        _keep(self.rollout_logprobs, np.float32)
        num_chosen = int(self.action_mask.sum())
        if self.action_mask.shape != self.token_ids.shape:
            raise DataError(f"a segment has {len(self.token_ids)} tokens and {len(self.action_mask)} marks; it needs one a token")
        if not num_chosen or self.action_mask[0]:
            raise DataError("a segment begins with a token that the policy read, and holds at least one that it chose")
        if len(self.rollout_logprobs) != num_chosen:
            raise DataError(
                f"completion has {num_chosen} tokens but {len(self.rollout_logprobs)} logprobs; "
                "ask the engine for one logprob per sampled token"
            )
        if sum(stretch.num_tokens for stretch in self.stretches) != num_chosen:
            raise DataError(f"stretches {self.stretches} do not cover the {num_chosen} tokens that the policy chose")

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryTokens:
    """One trajectory as the learner reads it. A single turn is one segment; an environment that rewrites the context between
    turns makes several, each with its own."""

    segments: tuple[Segment, ...]  # in the order in which they were sampled

    def __post_init__(self) -> None:
        if not self.segments:
            raise DataError("a trajectory has no segments; a failed one is among the failures of its group")

    @property
    def rollout_logprobs(self) -> FloatArray:
        """[T] nats, of all tokens that the policy chose."""
        return np.concatenate([segment.rollout_logprobs for segment in self.segments])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The numbers of one trajectory, which decide how a batch is cut. Produced by `sample_of`, consumed by driver and learner."""

    sample_index: int
    num_tokens: int  # that the policy chose
    segment_lengths: tuple[int, ...]  # tokens, those of the prompt included
    stretches: tuple[Stretch, ...]  # of all segments
    finish_reason: FinishReason

    @property
    def policy_versions(self) -> frozenset[int]:
        return frozenset(stretch.policy_version for stretch in self.stretches)


def sample_of(sample_index: int, tokens: TrajectoryTokens, finish_reason: FinishReason) -> Sample:
    """The numbers of a trajectory."""
    return Sample(
        sample_index=sample_index,
        num_tokens=sum(len(segment.rollout_logprobs) for segment in tokens.segments),
        segment_lengths=tuple(len(segment.token_ids) for segment in tokens.segments),
        stretches=tuple(stretch for segment in tokens.segments for stretch in segment.stretches),
        finish_reason=finish_reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTexts:
    """What the samples of one prompt read like. Produced by a generator, consumed by scorers and the ledger."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]  # [G], in order of sample_index; those that failed are missing


class Stored(Protocol[StoredT]):
    """Something large that lies where it was made, until somebody needs it."""

    def fetch(self) -> StoredT:
        """The thing itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryGroup:
    """What the samples of one prompt came to: their numbers, and where texts and tokens are. Produced by a generator."""

    task_id: str
    samples: tuple[Sample, ...]  # [G], in order of sample_index; those that failed are missing
    texts: Stored[GroupTexts]
    tokens: Stored[tuple[TrajectoryTokens, ...]]  # [G]
    failures: Mapping[int, str] = field(default_factory=dict)  # sample_index -> why the engine gave no completion for it
    attempt: int = 1  # generators that were asked; more than 1 where some were lost over it

    def __post_init__(self) -> None:
        if not self.num_samples:
            raise DataError("a trajectory group is empty; sampling.samples_per_prompt must be at least 1")
        both = [each.sample_index for each in self.samples if each.sample_index in self.failures]
        if both:
            raise DataError(f"samples {both} of task {self.task_id!r} have a completion and failed; it is one or the other")

    @property
    def num_samples(self) -> int:
        """Completions that were asked for."""
        return len(self.samples) + len(self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutGroup:
    """A prompt that was taken back before all its completions were there. Produced by `Oversampling`, consumed by the ledger."""

    prompt: Prompt
    num_samples: int  # that were asked for


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
    rewards: tuple[Reward, ...]  # [G], of `samples`
    problems: Mapping[int, str] = field(default_factory=dict)  # sample_index -> why that trajectory has no reward
    greedy: "ScoredGroup | None" = None  # the prompt's greedy completion, where the method has its score as the baseline

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.samples):
            raise DataError(f"{len(self.samples)} trajectories but {len(self.rewards)} rewards in one group")

    @property
    def samples(self) -> tuple[Sample, ...]:
        """[G] those that have a reward."""
        return tuple(each for each in self.group.samples if each.sample_index not in self.problems)

    def of_scored(self, each_of_group: Sequence[EachT]) -> tuple[EachT, ...]:
        """[G] what belongs to trajectories with a reward, out of what the whole group has of it."""
        pairs = zip(self.group.samples, each_of_group, strict=True)
        return tuple(each for sample, each in pairs if sample.sample_index not in self.problems)

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
    node_id: str  # Ray's, of the host whose shared memory holds it; others fetch it from there. Empty outside Ray
    path: str  # a safetensors file with Hugging Face names, in a folder of that node's own
    checksum: str  # sha256 hex of the file
    stamp: FileStamp  # of the file as it was when `checksum` was taken


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterProbe:
    """Contexts by which a generator sees that it samples with an adapter. Made by the learner, part of an `AdapterFile`."""

    contexts: tuple[tuple[int, ...], ...]  # token ids
    logprobs: tuple[Mapping[int, float], ...]  # after each: of the likeliest next tokens, nats at temperature 1
    start_logprobs: tuple[Mapping[int, float], ...]  # of the same tokens without the adapter
    max_mismatch: float  # mean absolute difference, in nats, up to which an engine's log-probabilities count as the learner's


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A low-rank adapter that waits in shared memory. Produced by the learner, consumed by every generator, which loads it."""

    weights: WeightFile  # as peft writes them
    config: str  # what peft has beside them in `adapter_config.json`
    probe: AdapterProbe

    @property
    def policy_version(self) -> int:
        return self.weights.policy_version

    @property
    def path(self) -> str:
        """Of the tensors."""
        return self.weights.path

    @property
    def checksum(self) -> str:
        """Of the tensors."""
        return self.weights.checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class SentWeights:
    """Weights that went over a device. Produced by the learner, consumed by every generator, which confirms that it has them."""

    policy_version: int
    checksum: str  # hex, of the tensors as they were sent: `actors.device_wire.BitChecksum`


PublishedWeights = WeightFile | AdapterFile | SentWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How a generator samples. Sample i of a prompt draws with a seed derived from (seed, task_id, i)."""

    temperature: float  # 0 is greedy
    top_p: float
    max_completion_tokens: int
    samples_per_prompt: int
    seed: int


def _keep(array: NDArray[Any], dtype: DTypeLike) -> None:
    """Make a list of numbers unchangeable, once it is what it should be."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise DataError(
            f"{array!r:.100} is not one row of {np.dtype(dtype)}; make it with numpy.array(values, numpy.{np.dtype(dtype)})"
        )
    array.setflags(write=False)


def _equal(one: Any, other: Any) -> bool:
    """Whether two records of one type have equal fields, arrays among them."""
    if type(one) is not type(other):
        return False
    return all(np.array_equal(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
