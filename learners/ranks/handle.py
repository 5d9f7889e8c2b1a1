"""A learner's ranks as the driver sees them: a Ray Train group behind plain calls."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ActorLostError, BatchLostError, LearnerRestartedError, RaywardError
from cluster.processes.hosts.folder import this_node
from cluster.processes.supervision import not_started
from cluster.processes.watchdog import Pending
from cluster.types import SaveReport
from learners.ranks.group import TrainGroup
from learners.ranks.loop import LoopSetup, begin_saving, finish_saving, num_steps_done, train_loop_per_worker
from learners.ranks.loss import said_of_a_rank
from learners.ranks.mailbox import Answer, Call, CheckpointPlan, Mailbox
from learners.ranks.plan import GroupPlan
from learners.settings.training import WorkerConfig

if TYPE_CHECKING:
    from learners.ranks.checkpoint import Checkpointed

LAST_WORDS_S = 1.0  # for the answer of ranks that have just left
STOP_TIMEOUT_S = 60.0  # for ranks to leave after the last call; the end of Ray ends them in any case


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksPlan:
    """What the ranks of a learner are. Produced by a learner's own handle, consumed by `RanksHandle`."""

    name: str  # of the group
    build: Callable[[int, int], "Checkpointed"]  # see `LoopSetup`
    workers: WorkerConfig
    checkpoints: CheckpointPlan
    storage: Path  # Ray Train's own records


class RanksHandle:
    """Starts the ranks, hands them calls one at a time, and says why they ended if they do. A context manager."""

    def __init__(self, plan: RanksPlan) -> None:
        self._plan = plan
        self._mailbox = self._new_mailbox()
        self._group: TrainGroup | None = None
        self._num_restarts = 0
        self._has_answered = False  # those that run now: until then they may still be loading
        self._pending: tuple[Pending, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.stop()
        else:  # the error that is on its way says more than a failure to stop
            self._running().kill()
            ray.kill(self._mailbox)

    def start(self) -> None:
        """Start the ranks; returns at once, and calls wait until all have loaded their models."""
        plan = self._plan
        self._has_answered = False
        self._group = TrainGroup.start(
            GroupPlan(
                name=plan.name,
                train_loop=train_loop_per_worker,
                setup=LoopSetup(build=plan.build, checkpoints=plan.checkpoints, mailbox=self._mailbox),
                workers=plan.workers,
                storage=plan.storage,
                max_restarts=plan.workers.max_restarts,
                tell=partial(_tell, self._mailbox),
            )
        )

    def pending(self) -> tuple[Pending, ...]:
        """The call that the ranks work on. May be asked from any thread."""
        return self._pending

    def wait_until_ready(self) -> int:
        """Steps done, once all ranks have loaded their models and the newest checkpoint, if there is one."""
        return int(self.call(Call(function=num_steps_done)))

    def save(self) -> SaveReport | None:
        """Begin to write a checkpoint of the steps done; how the one before ended, None where there was none."""
        return self.call(Call(function=begin_saving))

    def finish_saving(self) -> SaveReport | None:
        """Wait for the checkpoint that is being written; how that ended, None where there is none."""
        return self.call(Call(function=finish_saving))

    def stop(self) -> None:
        """End the ranks."""
        try:
            self.call(None)
        except LearnerRestartedError:  # what they have forgotten is on disk by now, so those in their place may leave as well
            self.call(None)
        self._running().wait(timeout_s=STOP_TIMEOUT_S)
        ray.kill(self._mailbox)

    def call(self, call: Call | None, meanwhile: Callable[[], object] | None = None) -> Any:
        """Ask the ranks; None ends them. What they run in, and Ray Train beside them, is started anew where it is lost, as often
        as ranks are: then `LearnerRestartedError` is raised. Raises `BatchLostError` where samples are lost.

        `meanwhile`: called again and again until they answer; it should take a fraction of a second.
        """
        try:
            return self._ask(call, meanwhile)
        except ActorLostError as error:
            if self._num_restarts == self._plan.workers.max_restarts:
                raise
            self._num_restarts += 1
            self._running().kill()
            ray.kill(self._mailbox)
            self._mailbox = self._new_mailbox()
            self.start()
            raise LearnerRestartedError(
                f"{str(error).splitlines()[0]}; it has started again from the newest checkpoint"
            ) from error

    def _new_mailbox(self) -> "ray.actor.ActorHandle":
        """On the driver's node, without which there is no run: the loss of any other costs no more than the ranks there."""
        here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
        return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote(self._plan.workers.num_workers)

    def _running(self) -> TrainGroup:
        if self._group is None:
            raise RaywardError("the learner was not started; call start() first")
        return self._group

    def _ask(self, call: Call | None, meanwhile: Callable[[], object] | None) -> Any:
        group = self._running()
        pending = self._mailbox.send.remote(call)
        what = "leaving" if call is None else call.function.__name__
        self._pending = (Pending(whom="the learner's ranks", what=what, since_s=time.monotonic()),)
        deadline_s = None if self._has_answered else self._plan.workers.start_deadline_s
        while meanwhile is not None and not ray.wait([pending, group.end], num_returns=1, timeout=0)[0]:
            meanwhile()
        ended, _ = ray.wait([pending, group.end], num_returns=1, timeout=deadline_s)
        self._pending = ()
        if not ended and deadline_s is not None:
            reason = not_started(deadline_s, setting="learner.workers.start_deadline_s")
            raise ActorLostError(f"the {self._plan.name} has not come: {reason}")
        has_ended = group.has_ended()  # then nobody answers any more, but what was said before comes first
        try:
            answer: Answer = ray.get(pending, timeout=LAST_WORDS_S if has_ended else None)
        except (RayError, TimeoutError) as error:
            raise (
                group.failure() if has_ended else ActorLostError(f"the learner's mailbox was lost: {said_of_a_rank(error)}")
            ) from error
        self._has_answered = True
        match answer:
            case Answer(outcome="lost", reply=reason):
                why = f" ({reason})" if reason else ""
                raise LearnerRestartedError(
                    f"the learner's ranks were lost{why} and have started again from the newest checkpoint"
                )
            case Answer(outcome="failed", reply=error):
                raise error
            case Answer(reply=BatchLostError() as lost):
                raise lost
        return answer.reply


def _tell(mailbox: "ray.actor.ActorHandle", reason: str) -> None:
    mailbox.lose.remote(reason)
