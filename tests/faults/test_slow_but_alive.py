"""Work that is slow and progresses, for three deadlines and more: nobody is replaced."""

from collections.abc import Callable

import pytest

from tests.faults import bad_rewards
from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import RunStarter

DEADLINE_S = 4.0
SHORT_RUN = ("learner.num_steps=2", f"supervision.deadline_s={DEADLINE_S}", "evaluation.num_prompts=1")


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize(
    ("role", "overrides"),
    [
        # 16 trajectories of a second each in one call; the function's own time-out is not what is waited for.
        (
            "scorer",
            [f"scorers=[{{kind: python, path: '{bad_rewards.__name__}:slow', weight: -0.1, timeout_s: 2}}]"],
        ),
        # One sequence after the other: a prompt's 48 samples are one call.
        (
            "generator",
            [
                "generator.max_num_sequences=1",
                "generator.max_model_tokens=256",
                "task.max_prompt_tokens=56",
                "sampling.max_completion_tokens=200",
                "sampling.samples_per_prompt=48",
                "learner.prompts_per_step=1",
                "learner.minibatch_size=48",
            ],
        ),
    ],
)
def test_slow_work_is_waited_for(
    start_run: RunStarter, measured: Callable[[FaultRow], None], role: str, overrides: list[str]
) -> None:
    run = start_run(*SHORT_RUN, *overrides)
    exit_code = run.wait()
    slowest_s = max((line["time/rollout_s"] for line in run.metrics()), default=0.0)
    num_replaced = run.output.count("is lost")
    is_slow = slowest_s >= 3 * DEADLINE_S
    measured(
        FaultRow(
            row="20",
            fault=f"a {role} that works on one call for three deadlines",
            num_injected=1,
            num_survived=int(exit_code == 0),
            measured=f"longest step {slowest_s / DEADLINE_S:.1f} deadlines, {num_replaced} replaced, exit {exit_code}",
            bar="3 deadlines, 0 replaced, exit 0",
            holds=exit_code == 0 and num_replaced == 0 and is_slow,
        )
    )
    assert exit_code == 0, run.output
    assert is_slow, "the work was too quick to say anything"
    assert num_replaced == 0, run.output
