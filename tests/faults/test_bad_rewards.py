"""Rewards that are no numbers, or too large for one: what has no score is left out, and bad numbers move no weight."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest

from cluster.storage.ledger import read_ledger
from tests.faults import bad_rewards
from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import FaultyRun, RunStarter

TIMEOUT_S, MARGIN_S = 3.0, 2.0
SAID = ("no opinion", "no result within", "returned None", "returned nan", "ended with status 3")


def scorers(function: str) -> str:
    path = f"{bad_rewards.__name__}:{function}"
    return f"scorers=[{{kind: python, path: '{path}', weight: -0.1, timeout_s: {TIMEOUT_S}}}]"


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_five_kinds_of_no_score(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    run = start_run(scorers("length_or_worse"), "max_unscored_frac=0.6")
    exit_code = run.wait()
    assert exit_code == 0, run.output
    entries = list(read_ledger(run.path / "trajectories"))
    unscored = [entry for entry in entries if entry.outcome == "unscored"]
    wrong = [entry for entry in entries if (entry.outcome == "trained") == bad_rewards.is_bad(entry.task_id)]
    first = {each for each in clean_run.trained() if each[0] == 0 and not bad_rewards.is_bad(each[1])}
    lost = first - run.trained()
    usual_s = median(line["time/rollout_s"] for line in clean_run.metrics())
    longer_s = {line["step"]: line["time/rollout_s"] - usual_s for line in run.metrics()}
    num_unscored = Counter(entry.step for entry in unscored)
    is_in_time = all(longer_s[step] <= number * (TIMEOUT_S + MARGIN_S) for step, number in num_unscored.items())
    measured(
        FaultRow(
            row="9",
            fault="a reward function raises, hangs, returns None or NaN, ends its process",
            num_injected=len(unscored),
            num_survived=len(unscored) - len(wrong),
            losses=replace(run.losses(clean_run), num_lost=len(lost)),  # of the first step: after it the runs differ
            measured=f"{len(unscored)} of {len(entries)} left out, none a zero; longest step {max(longer_s.values()):+.1f} s",
            bar=f"time-out {TIMEOUT_S:g} s + {MARGIN_S:g} s each",
            holds=not wrong and not lost and is_in_time,
        )
    )
    told = " ".join(entry.problem for entry in unscored)
    assert [word for word in SAID if word not in told] == []
    assert wrong == []
    assert lost == set()
    assert run.audit().problems == ()


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_numbers_that_overflow(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    run = start_run(scorers("huge"))
    exit_code = run.wait()
    kept = list(read_ledger(run.path / "failed_batches"))
    skipped = [line["optim/skipped_in_a_row"] for line in run.metrics()]
    # No checkpoint was written in the three steps of bad numbers, so the resumed run is a whole one.
    is_clean = run.resume("scorers=[{kind: function, function: length, weight: -0.1}]").ends_as(clean_run)
    measured(
        FaultRow(
            row="8",
            fault="rewards whose loss is not finite; resumed with good ones",
            num_injected=1,
            num_survived=int(is_clean),
            measured=f"ended after {skipped[-1]:.0f} + 2 optimizer steps, {len(kept)} trajectories kept, exit {exit_code}",
            bar="5 in a row, batch kept, exit 1",
            holds=exit_code == 1 and len(kept) == 16 and is_clean,
        )
    )
    assert exit_code == 1, run.output
    assert "not finite" in run.output
    assert len(kept) == 16
    assert is_clean
