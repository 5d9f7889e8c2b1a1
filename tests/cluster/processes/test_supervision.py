"""Actors that die, hang or lose their engine: replaced, admitted, and their work done by another; over real Ray actors."""

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError

from cluster.errors import ActorLostError, RaywardError
from cluster.processes.dispatch.arrivals import Arrival, Arrivals
from cluster.processes.pool import LOST, ActorPool, Supervision
from tests.records import arrived

DEADLINE_S = 3.0


class Worker:
    def __init__(self, *, load_s: float = 0.0) -> None:
        time.sleep(load_s)
        self._admitted = False
        self._num_pieces = 0

    def progress(self) -> int:
        return self._num_pieces

    def work_long(self, number: int) -> int:
        """One call of three deadlines, in pieces."""
        for _ in range(int(3 * DEADLINE_S / 0.5)):
            time.sleep(0.5)
            self._num_pieces += 1
        return number

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def refuse(self) -> None:
        raise ActorLostError("refused this once")

    def pid(self) -> int:
        return os.getpid()

    def admit(self) -> None:
        self._admitted = True

    def is_admitted(self) -> bool:
        return self._admitted

    def double(self, number: int) -> int:
        time.sleep(0.05)
        return 2 * number

    def lose_engine(self, number: int) -> int:
        if not self._admitted:
            raise ActorLostError("its engine has died")
        return self.double(number)

    def die(self, number: int) -> int:
        os._exit(number)

    def die_of_three(self, number: int) -> int:
        if number == 3:
            os._exit(number)
        return self.double(number)


RemoteWorker = ray.remote(num_cpus=0, concurrency_groups={"progress": 1})(Worker)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(local_ray: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


def admission(actor: Any) -> Generator[ray.ObjectRef, Any, None]:
    assert (yield actor.is_admitted.remote()) is False
    yield actor.admit.remote()


def admission_after_a_refusal(actor: Any) -> Generator[ray.ObjectRef, Any, None]:
    with pytest.raises(ActorLostError, match="refused this once"):
        yield actor.refuse.remote()
    yield actor.admit.remote()


def fail_some(monkeypatch: pytest.MonkeyPatch, error_of: Callable[[ray.ObjectRef], Exception | None]) -> None:
    """Calls for which there is an error end with that, whatever they have ended with."""
    take = Arrivals.take

    def taken(arrivals: Arrivals, *, timeout_s: float | None) -> list[Arrival]:
        found = take(arrivals, timeout_s=timeout_s)
        for index, (ref, _) in enumerate(found):
            error = error_of(ref)
            if error is not None:
                failed: Future[Any] = Future()
                failed.set_exception(error)
                found[index] = Arrival(ref, failed)
        return found

    monkeypatch.setattr(Arrivals, "take", taken)


class Watched:
    """A pool of two, and what was told about it."""

    def __init__(
        self,
        *,
        max_losses: int = 3,
        load_s: float = 0.0,
        new_load_s: float = 0.0,
        num_cpus: float = 0.0,
        start_deadline_s: float = 60.0,
        admission: Callable[[Any], Generator[ray.ObjectRef, Any, None]] = admission,
    ) -> None:
        self.notes: list[str] = []
        self.pool: ActorPool[Any] = ActorPool(
            {name: RemoteWorker.options(num_cpus=num_cpus).remote(load_s=load_s) for name in ("a", "b")},
            Supervision(
                start=lambda name: RemoteWorker.remote(load_s=new_load_s),
                admission=admission,
                progress=lambda actor: actor.progress.options(concurrency_group="progress").remote(),
                deadline_s=DEADLINE_S,
                start_deadline_s=start_deadline_s,
                max_losses=max_losses,
                memory_advice="give it less to hold",
                note=self.notes.append,
            ),
        )
        self.pids = self.pool.broadcast(lambda actor: actor.pid.remote())

    def doubled(self, numbers: range) -> Iterator[tuple[int, int, int]]:
        return arrived(self.pool.map_unordered(lambda actor, number: actor.double.remote(number), numbers, max_in_flight=2))

    def wait_for(self, num_actors: int) -> None:
        while len(self.pool) < num_actors:
            self.pool.finished([], timeout_s=1.0)


@pytest.mark.parametrize("kill_after", [0, 1, 7])
def test_each_item_is_done_once_when_an_actor_is_killed(kill_after: int) -> None:
    watched = Watched()
    results = []
    for done, result in enumerate(watched.doubled(range(30))):
        if done == kill_after:
            os.kill(watched.pids["a"], signal.SIGKILL)
        results.append(result)
    assert sorted((number, double) for number, _, double in results) == [(number, 2 * number) for number in range(30)]
    assert {attempt for _, attempt, _ in results} <= {1, 2}
    watched.wait_for(2)
    assert watched.pool.num_lost == 1
    assert [note.split(" (")[0] for note in watched.notes] == ["a is lost", "a is back"]
    assert watched.pool.broadcast(lambda actor: actor.is_admitted.remote()) == {"b": False, "a": True}


def test_an_actor_that_hangs_is_lost_by_its_deadline() -> None:
    watched = Watched()
    started = 0.0
    results: list[tuple[int, int, int]] = []
    for result in watched.doubled(range(30)):
        if not results:
            os.kill(watched.pids["a"], signal.SIGSTOP)
            started = time.monotonic()
        results.append(result)
    assert sorted((number, double) for number, _, double in results) == [(number, 2 * number) for number in range(30)]
    assert max(attempt for _, attempt, _ in results) == 2
    assert time.monotonic() - started >= DEADLINE_S  # its items were waited for so long
    assert f"no progress for {DEADLINE_S:.0f} s" in watched.notes[0]
    watched.wait_for(2)


def test_an_actor_that_still_loads_has_the_deadline_of_a_start() -> None:
    watched = Watched(load_s=DEADLINE_S + 2)
    assert (watched.pool.num_lost, watched.notes) == (0, [])


def test_a_first_start_that_hangs_is_lost_by_its_deadline() -> None:
    watched = Watched(load_s=600.0, start_deadline_s=10.0)
    assert watched.pids == {}
    lost = [note for note in watched.notes if "is lost (it has not started within 10 s: it still loads its model" in note]
    assert len(lost) == 2
    watched.wait_for(2)
    os.kill(ray.get(watched.pool.actors["a"].pid.remote()), signal.SIGSTOP)  # a replacement that joined has started
    assert watched.pool.broadcast(lambda actor: actor.double.remote(3)) == {"b": 6}
    assert f"no progress for {DEADLINE_S:.0f} s" in watched.notes[-1]
    watched.wait_for(2)


def test_a_start_that_no_node_has_room_for_ends_the_run_in_one_line() -> None:
    with pytest.raises(RaywardError) as caught:
        Watched(max_losses=0, num_cpus=100.0, start_deadline_s=1.0)
    (line,) = str(caught.value).splitlines()
    assert re.match("[ab] was lost 1 times in a row, .* it has not started within 1 s: .* no node has room for it", line)
    assert re.search(r"\(free in the cluster: [\d.]+ of 2 CPUs\); raise supervision.start_deadline_s", line)


def test_a_replacement_that_does_not_come_up_is_lost_too() -> None:
    watched = Watched(max_losses=1, new_load_s=600.0, start_deadline_s=10.0)
    os.kill(watched.pids["a"], signal.SIGKILL)
    os.kill(watched.pids["b"], signal.SIGKILL)
    with pytest.raises(RaywardError, match="was lost 2 times in a row.*it has not started within 10 s"):
        list(watched.doubled(range(4)))


def test_what_is_pending_is_told_by_name() -> None:
    watched = Watched()
    refs = [watched.pool.start("a", lambda actor: actor.double.remote(3), about="twice 3")]
    (pending,) = watched.pool.pending()
    assert (pending.whom, pending.what) == ("a", "twice 3")
    watched.pool.finished(refs)
    assert watched.pool.pending() == []


def test_all_actors_lost_at_once_is_a_wait_and_not_an_end() -> None:
    watched = Watched()
    for pid in watched.pids.values():
        os.kill(pid, signal.SIGKILL)
    assert sorted((number, double) for number, _, double in watched.doubled(range(4))) == [(n, 2 * n) for n in range(4)]
    watched.wait_for(2)
    assert watched.pool.num_lost == 2


def test_an_actor_without_its_engine_is_replaced() -> None:
    watched = Watched()
    call = lambda actor, number: actor.lose_engine.remote(number)  # noqa: E731
    results = arrived(watched.pool.map_unordered(call, range(4), max_in_flight=1))
    assert sorted((number, double) for number, _, double in results) == [(number, 2 * number) for number in range(4)]
    assert "its engine has died" in watched.notes[0]


def test_a_broadcast_reaches_those_that_live() -> None:
    watched = Watched()
    os.kill(watched.pids["a"], signal.SIGKILL)
    assert watched.pool.broadcast(lambda actor: actor.double.remote(3)) == {"b": 6}
    watched.wait_for(2)
    assert set(watched.pool.broadcast(lambda actor: actor.double.remote(3))) == {"a", "b"}


def test_an_item_that_kills_its_actors_ends_the_run_though_others_finish_in_between() -> None:
    watched = Watched(max_losses=1)
    call = lambda actor, number: actor.die_of_three.remote(number)  # noqa: E731
    with pytest.raises(RaywardError, match="2 actors were lost while they worked on 3|lost 2 times in a row"):
        list(watched.pool.map_unordered(call, range(40), max_in_flight=1))


def test_an_item_that_kills_every_actor_ends_the_run() -> None:
    watched = Watched(max_losses=2)
    with pytest.raises(RaywardError, match="3 actors were lost while they worked on 3|was lost 3 times in a row"):
        list(watched.pool.map_unordered(lambda actor, number: actor.die.remote(number), [3], max_in_flight=1))


def test_slow_work_that_makes_progress_is_waited_for() -> None:
    watched = Watched()
    results = arrived(watched.pool.map_unordered(lambda actor, number: actor.work_long.remote(number), [3], max_in_flight=1))
    assert [(number, attempt) for number, attempt, _ in results] == [(3, 1)]
    assert (watched.pool.num_lost, watched.notes) == (0, [])


def test_a_caller_that_was_away_for_a_deadline_takes_nobody_for_lost() -> None:
    watched = Watched()
    running = watched.pool.start("a", lambda actor: actor.work_long.remote(3))
    other = RemoteWorker.remote()
    ray.get(other.sleep.remote(2 * DEADLINE_S))  # while which the pool looks at nobody
    while not (ended := watched.pool.finished([running])):
        pass
    assert ended == [(running, 3)]
    assert (watched.pool.num_lost, watched.notes) == (0, [])


def test_a_call_may_have_a_deadline_of_its_own() -> None:
    watched = Watched()
    seconds = DEADLINE_S + 2  # in which no progress is made
    assert watched.pool.broadcast(lambda actor: actor.sleep.remote(seconds), deadline_s=30) == {"a": seconds, "b": seconds}
    assert watched.pool.num_lost == 0


def test_losses_that_nobody_waits_for_do_not_keep_others_from_waiting() -> None:
    watched = Watched()
    hanging = watched.pool.start("a", lambda actor: actor.double.remote(1))
    os.kill(watched.pids["a"], signal.SIGSTOP)
    while len(watched.pool) == 2 and not watched.notes:
        watched.pool.finished([], timeout_s=0.2)
        time.sleep(0.2)
    watched.wait_for(2)
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    watched.pool.finished([watched.pool.start("b", lambda actor: actor.sleep.remote(2.0))])
    assert time.monotonic() - started_s >= 2.0
    assert time.process_time() - started_cpu_s < 1.0  # it waited, and did not look again and again
    watched.pool.abandon([hanging])


def test_an_answer_of_a_replacement_that_is_an_error_is_the_admissions_to_judge() -> None:
    watched = Watched(admission=admission_after_a_refusal)
    os.kill(watched.pids["a"], signal.SIGKILL)
    list(watched.doubled(range(4)))
    watched.wait_for(2)
    assert watched.pool.num_lost == 1  # the replacement was refused once, and asked again


def test_shutdown_is_short_and_silent_where_an_actor_is_dead_and_another_hangs() -> None:
    watched = Watched()
    os.kill(watched.pids["a"], signal.SIGKILL)
    os.kill(watched.pids["b"], signal.SIGSTOP)
    started_s = time.monotonic()
    watched.pool.shut_down(lambda actor: actor.double.remote(1), timeout_s=1.0)
    assert time.monotonic() - started_s < DEADLINE_S
    assert (watched.pool.num_lost, watched.notes) == (0, [])  # nobody is started anew at the end
    os.kill(watched.pids["b"], signal.SIGKILL)


def test_one_outage_with_many_calls_in_flight_is_one_moment_and_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(max_losses=0)
    num_ended = itertools.count()
    fail_some(monkeypatch, lambda _: ActorUnavailableError("for a moment", None) if next(num_ended) < 30 else None)
    results = arrived(watched.pool.map_unordered(lambda actor, number: actor.double.remote(number), range(40), max_in_flight=20))
    found = sorted(results)
    assert found == [(number, 1, 2 * number) for number in range(40)]  # asked again, and not a second attempt
    assert (watched.pool.num_lost, watched.notes) == (0, [])


def test_a_loss_to_the_memory_monitor_is_told_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    call = watched.pool.start("a", lambda actor: actor.double.remote(1))
    killed = OutOfMemoryError("killed by Ray's memory monitor\na page of its text")
    fail_some(monkeypatch, lambda ref: killed if ref == call else None)
    assert watched.pool.finished([call]) == [(call, LOST)]
    assert "(the machine ran out of memory; Ray's memory monitor ended it; give it less to hold)" in watched.notes[0]
    watched.wait_for(2)
