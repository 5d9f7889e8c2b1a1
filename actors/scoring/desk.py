"""A desk for all processes of a run that want trajectories scored: one set of pools behind it, whoever asks."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TypeVar

from ray.util.placement_group import PlacementGroup

from actors.config import ScorerConfig, SupervisionConfig
from actors.generation.rendering import PromptFormat
from actors.scoring.stage import ScorerPools, build_scorer_pools
from cluster.processes.object_store import HeldObject
from cluster.processes.reservations.seats import Seats
from cluster.types import GroupTexts, Reward, Sample, Trajectory, TrajectoryGroup, Unscored

EachT = TypeVar("EachT")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    group: TrajectoryGroup  # of one trajectory
    answer: Future[Reward | Unscored] = field(default_factory=Future)


class ScoringDesk:
    """Runs in a Ray actor of several threads, one for each process that asks at the same time.

    Batches form by themselves, as in a policy run: what comes in while scorers are at work goes to them together afterwards.
    """

    def __init__(self, start: Callable[[Callable[[str], None]], ScorerPools]) -> None:
        """`start`: starts the scorers, given what is told when one is lost or replaced."""
        self._waiting: SimpleQueue[_Asked] = SimpleQueue()
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")  # pools are for one thread
        self._pools = self._thread.submit(start, self._notes.put).result()

    def score(self, trajectories: Sequence[Trajectory]) -> list[Reward | Unscored]:
        """The weighted sum over all scorers for each, in order, or why there is none."""
        asked = [_Asked(group=_group_of(trajectory)) for trajectory in trajectories]
        for each in asked:
            self._waiting.put(each)
        self._thread.submit(self._judge_waiting).result()
        return [each.answer.result() for each in asked]

    def notes(self) -> list[str]:
        """What people should know of scorers that were lost or replaced, since the last call."""
        return _drained(self._notes)

    def _judge_waiting(self) -> None:
        """All that waits, together; nothing where an earlier call has taken it along."""
        open_by_group = {id(asked.group): asked for asked in _drained(self._waiting)}
        try:
            for scored in self._pools.score_together([asked.group for asked in open_by_group.values()]):
                answer = open_by_group.pop(id(scored.group)).answer
                answer.set_result(scored.rewards[0] if scored.rewards else Unscored(problem=scored.problems[0]))
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            for asked in open_by_group.values():
                asked.answer.set_exception(error)


def start_scorers(
    note: Callable[[str], None],
    *,
    configs: Sequence[ScorerConfig],
    prompt_format: PromptFormat,
    supervision: SupervisionConfig,
    seats: Mapping[str, PlacementGroup],
) -> ScorerPools:
    """Return when all answer. `seats`: those of `scorer_seats`. Raises `RaywardError`."""
    pools = build_scorer_pools(configs, prompt_format=prompt_format, supervision=supervision, seats=Seats(note, seats), note=note)
    pools.wait_until_ready()
    return pools


def _drained(queue: SimpleQueue[EachT]) -> list[EachT]:
    found = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found


def _group_of(trajectory: Trajectory) -> TrajectoryGroup:
    """Texts travel with the call, for they are short-lived. Nobody learns from its tokens, so it has none."""
    sample = Sample(
        sample_index=0,
        num_tokens=len(trajectory.completion.token_ids),
        segment_lengths=(len(trajectory.prompt.token_ids) + len(trajectory.completion.token_ids),),
        stretches=(),
        finish_reason=trajectory.completion.finish_reason,
    )
    return TrajectoryGroup(
        task_id=trajectory.prompt.task.task_id,
        samples=(sample,),
        texts=HeldObject(GroupTexts(prompt=trajectory.prompt, trajectories=(trajectory,))),
        tokens=HeldObject(()),
    )
