"""The rollout stage, driver side: completions from a pool of generators, and new weights into it."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import ObjectRef

from actors.config import SupervisionConfig
from actors.generation.generator import Generated, HeldWeights
from cluster.errors import WeightMismatchError, WeightsLostError
from cluster.processes.dispatch.newcomers import resized
from cluster.processes.dispatch.whole import ask_all
from cluster.processes.object_store import StoredObject
from cluster.processes.pool import ActorPool
from cluster.processes.supervision import PROGRESS_GROUP, Supervision, nothing_reserved
from cluster.processes.watchdog import Pending
from cluster.types import Prompt, PublishedWeights, SamplingParameters, TrajectoryGroup

SHUTDOWN_S = 3.0  # for all engines together; what still runs then, the end of Ray ends
PATIENCE_S = 0.2  # for the next group, before the caller may look after what else it waits for
MEMORY_ADVICE = "lower generator.kv_cache_gib or generator.num_replicas; `rayward plan` shows what each role takes"
QUEUE_FACTOR = 2  # batches' worth of prompts at each engine, so that it never waits for the driver


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorKind:
    """Generators of one configuration. Produced by `learners.run.composition`, consumed by `RolloutPool`."""

    start: Callable[[str], Any]  # a new Ray actor of a `Generator`, by its name
    num_replicas: int
    max_num_sequences: int  # that one of them decodes at a time, and so its share of the work
    name: str = "generator"  # with a number after it, that of an actor
    give_back: Callable[[str], None] = nothing_reserved  # what an actor had reserved that has left for good


def generator_name(kind: str, index: int) -> str:
    """Of one of a kind's actors."""
    return f"{kind} {index}"


class RolloutPool:
    """Generators of one or several kinds behind two calls. Each gets work as it can decode sequences at the same time."""

    def __init__(
        self, kinds: Sequence[GeneratorKind], *, supervision: SupervisionConfig | None, note: Callable[[str], None]
    ) -> None:
        """`kinds`: with different names. Without `supervision` a lost generator is an error."""
        self._kinds = {kind.name: kind for kind in kinds}
        names = [generator_name(kind.name, index) for kind in kinds for index in range(kind.num_replicas)]
        self._generators = ActorPool(
            {name: self._start(name) for name in names},
            None
            if supervision is None
            else Supervision(
                start=self._start,
                give_back=lambda name: self._kind_of(name).give_back(name),
                admission=self._admission,
                progress=lambda generator: generator.progress.options(concurrency_group=PROGRESS_GROUP).remote(),
                deadline_s=supervision.deadline_s,
                start_deadline_s=supervision.start_deadline_s,
                max_losses=supervision.max_losses,
                memory_advice=MEMORY_ADVICE,
                note=note,
            ),
            capacity_of=lambda name: self._kind_of(name).max_num_sequences,
        )
        self._publish_deadline_s = None if supervision is None else supervision.publish_deadline_s
        self._published: PublishedWeights | None = None
        self._send_again: Callable[[Any], PublishedWeights] | None = None

    def feed_new_ones(self, send_again: Callable[[Any], PublishedWeights]) -> None:
        """Weights go over devices, where a replacement finds none: `send_again(generator)` sends it those of the learner."""
        self._send_again = send_again

    @property
    def actors(self) -> Mapping[str, Any]:
        return self._generators.actors

    def num_replicas(self, kind: str) -> int:
        """Generators of a kind that take work, or are on their way."""
        return sum(self._kind_of(name).name == kind for name in self._generators.names)

    def num_coming(self, kind: str) -> int:
        """Of these, those that are on their way."""
        return self.num_replicas(kind) - sum(self._kind_of(name).name == kind for name in self._generators.actors)

    def resize(self, kind: str, num_replicas: int) -> None:
        """Start generators, which take work once they hold the newest weights, or let some go when they have done their work."""
        names = self._generators.names
        others = [name for name in names if self._kind_of(name).name != kind]
        own = [name for name in names if self._kind_of(name).name == kind]
        self._generators.resize([*others, *resized(own, num_replicas, partial(generator_name, kind))])

    def pending(self) -> list[Pending]:
        """What the generators owe: the ids of prompts, or an answer. May be asked from any thread."""
        return self._generators.pending()

    def wait_until_ready(self) -> None:
        """Return when every engine answers; raises with the name of one that does not start."""
        self._generators.broadcast(lambda generator: generator.ready.remote())

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Generator[TrajectoryGroup | None, None, None]:
        """Yield one group a prompt, in order of completion, so that scoring starts while others generate.

        None where no group has come for a moment: the caller can look after the scorers, or after another `collect`. Closed, it
        takes back what has not come, and engines stop working on it.
        """
        for each in self.collect_each([(prompt, sampling) for prompt in prompts]):
            yield None if each is None else each[1]

    def collect_each(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]]
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup] | None]:
        """Like `collect`, in one wave for prompts that are sampled in several ways; each group comes with its own way."""
        largest_group = max((sampling.samples_per_prompt for _, sampling in requests), default=1)
        yield from self.collect_as_asked(requests, largest_group=largest_group)

    def collect_as_asked(
        self, requests: Iterable[tuple[Prompt, SamplingParameters] | None], *, largest_group: int
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup] | None]:
        """Like `collect_each`, for requests that are still to come: None among them says that there is none for now.

        `largest_group`: the most samples of one prompt.
        """
        stored: dict[int, tuple[ObjectRef, ObjectRef]] = {}  # by request: what its newest attempt leaves in Ray's store

        def generate(generator: Any, request: tuple[Prompt, SamplingParameters]) -> ObjectRef:
            numbers, *large = generator.generate.options(num_returns=len(Generated._fields)).remote(*request)
            stored[id(request)] = (large[0], large[1])
            return numbers

        results = self._generators.map_unordered(
            generate,
            requests,
            max_in_flight=QUEUE_FACTOR / largest_group,  # of each sequence that it decodes at a time
            about=lambda request: request[0].task.task_id,
            patience_s=PATIENCE_S,
        )
        for each in results:
            if each is None:
                yield None
                continue
            request, attempt, numbers = each
            prompt, sampling = request
            texts, tokens = stored.pop(id(request))
            yield (
                sampling,
                TrajectoryGroup(
                    task_id=prompt.task.task_id,
                    samples=numbers.samples,
                    texts=StoredObject(texts),
                    tokens=StoredObject(tokens),
                    failures=numbers.failures,
                    attempt=attempt,
                ),
            )

    def publish(self, weights: PublishedWeights) -> None:
        """Load `weights` into every generator; returns only when all of them report this version and this checksum.

        One that was lost and is on its way back loads the weights that are the newest when it comes. Where all were lost, this
        waits for the first of them: what nobody holds is not published. Raises `WeightsLostError` where one cannot have them any
        more: publish again.
        """
        self._published = weights
        self._ask(lambda generator: generator.load_weights.remote(weights), about="new weights")
        held_by_name: dict[str, HeldWeights] = {}
        while not held_by_name:
            self._generators.wait_for_an_actor()
            held_by_name = self._generators.broadcast(lambda generator: generator.held_weights.remote())
        expected = _held(weights)
        differing = {name: held for name, held in held_by_name.items() if held != expected}
        if differing:
            raise WeightMismatchError(f"published {expected}, but generators hold {differing}; restart those generators")

    def sleep(self) -> None:
        """Every engine leaves its device. One that is lost meanwhile is replaced first: its start needs the device, too."""
        ask_all(
            self._generators,
            lambda generator: generator.sleep.remote(),
            about="leaving its device",
            deadline_s=self._publish_deadline_s,
        )

    def wake_weights(self) -> None:
        """Every engine has room for its weights again; it may have forgotten them."""
        self._ask(lambda generator: generator.wake.remote("weights"), about="waking its weights")

    def wake_cache(self) -> None:
        """Every engine can sample again."""
        self._ask(lambda generator: generator.wake.remote("kv_cache"), about="waking its cache")

    def _ask(self, call: Callable[[Any], ObjectRef], *, about: str) -> None:
        self._generators.broadcast(call, about=about, deadline_s=self._publish_deadline_s)

    def _admission(self, generator: Any) -> Generator[ObjectRef, Any, None]:
        """A new generator holds the start's weights: it takes work once it holds what the others hold.

        Weights that are gone when it comes to load them were followed by newer ones, or the learner will publish again: what is
        lost with its host is asked for until then.
        """
        yield generator.ready.remote()
        held = None
        while self._published is not None and held != _held(self._published):
            if self._send_again is not None:
                self._published = self._send_again(generator)
            weights = self._published
            try:
                yield generator.load_weights.remote(weights)
            except WeightsLostError:
                continue
            except WeightMismatchError:
                if self._published is weights:
                    raise
            else:
                held = yield generator.held_weights.remote()

    def _start(self, name: str) -> Any:
        return self._kind_of(name).start(name)

    def _kind_of(self, name: str) -> GeneratorKind:
        return self._kinds[name.rpartition(" ")[0]]

    def shutdown(self) -> None:
        """Stop the engines, as far as they answer; the actors themselves stay until Ray ends them."""
        self._generators.shut_down(lambda generator: generator.shutdown.remote(), timeout_s=SHUTDOWN_S)


def _held(weights: PublishedWeights) -> HeldWeights:
    return HeldWeights(policy_version=weights.policy_version, checksum=weights.checksum)
