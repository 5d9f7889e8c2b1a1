"""What a simulated run must conserve, whatever it simulates."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from tests.experiments.control_plane import NS, Costs, Outcome, Roles, Run, Workload
from tests.experiments.control_plane_schedules import asynchronous, synchronous, taking_turns

ROLES = Roles(num_generators=3, max_num_sequences=8, max_in_flight=4, num_scorers=2, num_ranks=2)
COSTS = Costs(
    driver_item_s=0.004,
    driver_step_s=0.01,
    sequence_token_s=0.02,
    score_s=0.3,
    rank_token_s=0.001,
    publish_s=0.7,
    switch_s=2.0,
)
WORKLOAD = Workload(prompts_per_step=10, samples_per_prompt=4, num_steps=6, mean_tokens=200.0, sigma=0.8, max_tokens=1000, seed=0)
SCHEDULES: dict[str, Callable[[Run], Outcome]] = {
    "synchronous": synchronous,
    "staleness 1": partial(asynchronous, max_staleness=1),
    "staleness 3": partial(asynchronous, max_staleness=3),
    "taking turns": taking_turns,
}


def run(*, roles: Roles = ROLES, costs: Costs = COSTS, workload: Workload = WORKLOAD) -> Run:
    return Run(roles, costs, workload)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_prompt_is_trained_on_once_and_in_the_order_of_steps(schedule: Callable[[Run], Outcome]) -> None:
    trained = schedule(run()).trained
    assert trained == [(step, prompt) for step in range(6) for prompt in range(10)]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_all_time_is_busy_or_idle(schedule: Callable[[Run], Outcome]) -> None:
    simulated = run()
    wall_ns = schedule(simulated).wall_ns
    for part, num_workers in ((simulated.driver, 1), (simulated.scorers, 2), (simulated.learner, 1)):
        assert part.busy_ns + part.idle_ns == num_workers * wall_ns
    generators = simulated.generators
    assert generators.busy_ns + generators.idle_ns == 3 * 8 * (wall_ns - generators.paused_ns)
    assert generators.paused_ns == 6 * round(0.7 * NS)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_work_does_not_depend_on_when_it_is_done(schedule: Callable[[Run], Outcome]) -> None:
    simulated = run()
    schedule(simulated)
    lengths = WORKLOAD.lengths()
    assert simulated.generators.busy_ns == int(lengths.sum()) * round(0.02 * NS)
    assert simulated.scorers.busy_ns == 60 * round(0.3 * NS)
    assert simulated.learner.busy_ns == sum(round(int(step.sum()) * 0.001 / 2 * NS) for step in lengths)


def test_without_staleness_asynchronous_is_synchronous_to_the_nanosecond() -> None:
    one, other = run(), run()
    assert synchronous(one) == asynchronous(other, max_staleness=0)
    for part in ("driver", "scorers", "learner", "generators"):
        assert getattr(one, part).idle_ns == getattr(other, part).idle_ns
    assert set(one.outcome.staleness) == {0}


@pytest.mark.parametrize("max_staleness", [1, 2, 3])
def test_staleness_is_bounded_and_the_bound_is_reached(max_staleness: int) -> None:
    outcome = asynchronous(run(), max_staleness=max_staleness)
    assert max(outcome.staleness) == max_staleness
    assert min(outcome.staleness) == 0  # of the first step
    assert outcome.wall_ns < synchronous(run()).wall_ns


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_drivers_time_grows_with_items_and_with_nothing_else(schedule: Callable[[Run], Outcome]) -> None:
    def busy_ns(prompts_per_step: int, costs: Costs = COSTS) -> int:
        simulated = run(workload=replace(WORKLOAD, prompts_per_step=prompts_per_step), costs=costs)
        schedule(simulated)
        return simulated.driver.busy_ns

    item_ns = round(0.004 * NS)  # two for a group: at a generator, and at a scorer; in a publication, two for a generator
    for prompts in (1, 10, 40):
        assert busy_ns(prompts) == 6 * (2 * prompts * item_ns + 2 * 3 * item_ns + round(0.01 * NS))
    assert busy_ns(10, replace(COSTS, sequence_token_s=0.5, rank_token_s=0.1)) == busy_ns(10)


@pytest.mark.parametrize(("schedule", "switches_s"), [(synchronous, 0.0), (taking_turns, 2 * 2.0)])
def test_one_completion_takes_the_sum_of_its_parts(schedule: Callable[[Run], Outcome], switches_s: float) -> None:
    workload = replace(WORKLOAD, prompts_per_step=1, samples_per_prompt=1, num_steps=1)
    num_tokens = int(workload.lengths().sum())
    # An item at the generator and one at the scorer, the batch, two items for each of three generators.
    driver_s = 2 * 0.004 + 0.01 + 2 * 3 * 0.004
    seconds = driver_s + num_tokens * 0.02 + 0.3 + num_tokens * 0.001 / 2 + 0.7 + switches_s
    assert schedule(run(workload=workload)).wall_ns == pytest.approx(seconds * NS, abs=2)


def test_a_pause_moves_what_is_in_flight_and_loses_nothing() -> None:
    """One step ahead with a learner that is done at once: completions of step 1 go on over the publication of step 0."""
    costs = replace(COSTS, rank_token_s=0.0, driver_item_s=0.0, driver_step_s=0.0, score_s=0.0)
    workload = replace(WORKLOAD, prompts_per_step=1, samples_per_prompt=1, num_steps=2, seed=1)
    roles = replace(ROLES, num_generators=2)
    first, second = (int(length) * 0.02 for length in workload.lengths().flat)
    assert first < second  # of this seed, so that the second is in flight in the first pause
    outcome = asynchronous(run(roles=roles, costs=costs, workload=workload), max_staleness=1)
    assert outcome.wall_ns == pytest.approx((second + 2 * 0.7) * NS, abs=2)
    assert outcome.staleness == [0, 1]
