"""A simulation of a run's control plane: discrete events on one simulated clock. Nothing here is measured, and nothing runs.

Simulated are: the driver, one processor that works through what comes in order; generators with slots for sequences, each
decoding at one rate whatever is beside it, groups going to the least loaded generator as in the real pool; scorers; a learner
whose time goes with the tokens of a batch; and publications, in which all generators stand still and keep what they have in
flight. Left out are failures, networks, prefill, and batches that decode slower when they are larger.

Times are whole nanoseconds, so sums are exact. The same seed gives the same completions to every way of scheduling.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from cluster.processes.dispatch.loads import Loads

NS = 1_000_000_000  # in a second

Then = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """How long things take, in seconds."""

    driver_item_s: float  # processor time of the driver for a call of a pool, made and taken back; half of it each
    driver_step_s: float  # likewise, for handing a batch to the learner
    sequence_token_s: float  # a generator's, for a token of one sequence
    score_s: float  # a scorer's, for a group
    rank_token_s: float  # a learner rank's, for a token of a batch; ranks share the tokens
    publish_s: float  # for which generators stand still
    switch_s: float  # from generating to learning on the same devices, or back


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked for. Lengths are log-normal, cut at the longest."""

    prompts_per_step: int
    samples_per_prompt: int
    num_steps: int
    mean_tokens: float  # of a completion, before the cut
    sigma: float  # of the logarithm
    max_tokens: int
    seed: int

    def lengths(self) -> np.ndarray:
        """Tokens of each completion, [num_steps, prompts_per_step, samples_per_prompt]."""
        shape = (self.num_steps, self.prompts_per_step, self.samples_per_prompt)
        mu = np.log(self.mean_tokens) - self.sigma**2 / 2
        drawn = np.random.default_rng(self.seed).lognormal(mu, self.sigma, shape)
        return np.clip(np.rint(drawn), 1, self.max_tokens).astype(int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Who is there."""

    num_generators: int
    max_num_sequences: int  # of a generator, at once
    max_in_flight: int  # groups at a generator, those that wait for a slot included
    num_scorers: int
    num_ranks: int


class Clock:
    """What happens next. Of events at one time, the one that was set first."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._events: list[tuple[int, int, Then]] = []
        self._num_set = 0

    def at(self, time_ns: int, then: Then) -> None:
        heapq.heappush(self._events, (time_ns, self._num_set, then))
        self._num_set += 1

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now_ns, _, then = heapq.heappop(self._events)
            then()


class Workers:
    """Like workers with one queue. Each piece of work goes to the one that is free first."""

    def __init__(self, clock: Clock, num_workers: int) -> None:
        self._clock = clock
        self._free_ns = [0] * num_workers  # a heap
        self.busy_ns = self.idle_ns = 0

    def do(self, cost_ns: int, then: Then) -> None:
        """Work that takes so long, behind all that was asked for before."""
        begin_ns = max(self._clock.now_ns, self._free_ns[0])
        self.idle_ns += begin_ns - self._free_ns[0]
        self.busy_ns += cost_ns
        heapq.heapreplace(self._free_ns, begin_ns + cost_ns)
        self._clock.at(begin_ns + cost_ns, then)

    def close(self, wall_ns: int) -> None:
        """Nothing more comes; what is left of the time is idle."""
        self.idle_ns += sum(wall_ns - free_ns for free_ns in self._free_ns)


class Generators:
    """Slots for sequences. They have a clock of their own, which stands still while they are paused."""

    def __init__(self, clock: Clock, roles: Roles, token_ns: int) -> None:
        self._clock = clock
        self._token_ns = token_ns
        self._free_ns = [[0] * roles.max_num_sequences for _ in range(roles.num_generators)]  # a heap each, on their own clock
        self._stood_ns = 0  # where their own clock stood at the last pause
        self.busy_ns = self.idle_ns = 0  # summed over slots
        self.paused_ns = 0

    def generate(self, generator: int, lengths: np.ndarray, *, on_start: Then, on_end: Then) -> None:
        """One group: each sequence takes the slot that is free first. `on_end`: of its longest sequence."""
        now_ns, slots = self._own_ns(), self._free_ns[generator]
        starts_ns, ends_ns = [], []
        for length in lengths.tolist():
            starts_ns.append(max(now_ns, slots[0]))
            ends_ns.append(starts_ns[-1] + length * self._token_ns)
            self.idle_ns += starts_ns[-1] - slots[0]
            heapq.heapreplace(slots, ends_ns[-1])
        self.busy_ns += sum(ends_ns) - sum(starts_ns)
        self._at(min(starts_ns), on_start)
        self._at(max(ends_ns), on_end)

    def pause(self, duration_ns: int) -> None:
        """All stand still from now on, and go on with what they have."""
        self._stood_ns = self._own_ns()
        self.paused_ns += duration_ns

    def close(self, wall_ns: int) -> None:
        """Nothing more comes; what is left of the time is idle."""
        own_ns = wall_ns - self.paused_ns
        self.idle_ns += sum(own_ns - free_ns for slots in self._free_ns for free_ns in slots)

    def _own_ns(self) -> int:
        return max(self._clock.now_ns - self.paused_ns, self._stood_ns)

    def _at(self, own_ns: int, then: Then) -> None:
        """At a time of their own clock, which a pause in between moves."""

        def when_due() -> None:
            if own_ns + self.paused_ns > self._clock.now_ns:
                self._clock.at(own_ns + self.paused_ns, when_due)
            else:
                then()

        self._clock.at(own_ns + self.paused_ns, when_due)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a simulated run was like."""

    trained: list[tuple[int, int]] = field(default_factory=list)  # (step, prompt), in order
    staleness: list[int] = field(default_factory=list)  # of each, in policy versions from its first token to its training
    wall_ns: int = 0


class Run:
    """The parts of a run, and what can be asked of them. A way of scheduling sets `on_collected` and begins."""

    def __init__(self, roles: Roles, costs: Costs, workload: Workload) -> None:
        self.clock = Clock()
        self.driver = Workers(self.clock, 1)
        self.scorers = Workers(self.clock, roles.num_scorers)
        self.learner = Workers(self.clock, 1)
        self.generators = Generators(self.clock, roles, _ns(costs.sequence_token_s))
        self.roles, self.costs, self.workload = roles, costs, workload
        self.outcome = Outcome()
        self.version = 0
        self.on_collected: Callable[[int], None] = lambda step: None
        self._lengths = workload.lengths()
        self._waiting: deque[tuple[int, int]] = deque()  # groups that no generator has room for
        self._loads = Loads()
        for generator in range(roles.num_generators):
            self._loads.add(str(generator))
        self._num_scored: Counter[int] = Counter()
        self._version_at_start: dict[tuple[int, int], int] = {}
        self._half_item_ns = _ns(costs.driver_item_s / 2)

    def ask(self, step: int) -> None:
        """Groups of a step, each sampled and scored; then `on_collected(step)`. Nothing after the last step."""
        if step == self.workload.num_steps:
            return
        self._waiting.extend((step, prompt) for prompt in range(self.workload.prompts_per_step))
        self._dispatch()

    def is_collected(self, step: int) -> bool:
        return self._num_scored[step] == self.workload.prompts_per_step

    def learn(self, step: int, then: Then) -> None:
        """One update on a step's groups, all of them, by the weights of this version."""
        groups = [(step, prompt) for prompt in range(self.workload.prompts_per_step)]
        self.outcome.trained += groups
        self.outcome.staleness += [self.version - self._version_at_start[group] for group in groups]
        num_tokens = int(self._lengths[step].sum())
        cost_ns = _ns(num_tokens * self.costs.rank_token_s / self.roles.num_ranks)
        self.driver.do(_ns(self.costs.driver_step_s), partial(self.learner.do, cost_ns, then))

    def publish(self, then: Then) -> None:
        """New weights to all generators, two calls each: they load, and say what they hold."""

        def load() -> None:
            self.generators.pause(_ns(self.costs.publish_s))
            self.clock.at(self.clock.now_ns + _ns(self.costs.publish_s), loaded)

        def loaded() -> None:
            self.version += 1
            then()

        self.driver.do(4 * self._half_item_ns * self.roles.num_generators, load)

    def switch(self, then: Then) -> None:
        """From one use of the devices to the other."""
        self.clock.at(self.clock.now_ns + _ns(self.costs.switch_s), then)

    def finish(self) -> Outcome:
        """Let happen what was begun, and sum up."""
        self.clock.run()
        self.outcome.wall_ns = self.clock.now_ns
        for part in (self.driver, self.scorers, self.learner, self.generators):
            part.close(self.clock.now_ns)
        return self.outcome

    def _dispatch(self) -> None:
        while self._waiting and self._loads.has_room(self.roles.max_in_flight):
            generator = self._loads.least_loaded()
            self._loads.begin(generator)
            self.driver.do(self._half_item_ns, partial(self._send, self._waiting.popleft(), generator))

    def _send(self, group: tuple[int, int], generator: str) -> None:
        self.generators.generate(
            int(generator),
            self._lengths[group],
            on_start=partial(self._started, group),
            on_end=lambda: self.driver.do(2 * self._half_item_ns, partial(self._generated, group, generator)),
        )

    def _started(self, group: tuple[int, int]) -> None:
        self._version_at_start[group] = self.version

    def _generated(self, group: tuple[int, int], generator: str) -> None:
        """The driver has taken it back, and handed it to a scorer."""
        self._loads.end(generator)
        self._dispatch()
        score_ns = _ns(self.costs.score_s)
        self.scorers.do(score_ns, lambda: self.driver.do(self._half_item_ns, partial(self._scored, group)))

    def _scored(self, group: tuple[int, int]) -> None:
        step, _ = group
        self._num_scored[step] += 1
        if self.is_collected(step):
            self.on_collected(step)


def _ns(seconds: float) -> int:
    return round(seconds * NS)
