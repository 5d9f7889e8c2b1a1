"""Answers compared by math-verify in its child process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.rewards.math_verify import MathChecker
from cluster.errors import DataError
from cluster.types import Trajectory
from tests.actors.public_data import each_data_file, records

NEVER_DONE = "It is 9**9**9**9"  # 9**9**9 alone has 370 million digits


@pytest.fixture(scope="module")
def checker() -> Iterator[MathChecker]:
    checker = MathChecker()
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("reference", "completion", "score"),
    [
        ("72", "Half of 48 is 24, and 48 + 24 = 72. #### 72", 1.0),
        ("72", "Half of 48 is 24. #### 24", 0.0),
        ("1200", "That makes $1,200.", 1.0),
        ("0.5", r"The answer is $\frac{1}{2}$.", 1.0),
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"$\frac{1}{2}$", r"\boxed{\frac{2}{4}}", 1.0),
        ("x + 1", "We get $1 + x$.", 1.0),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"$\begin{pmatrix} 1 \\ 2 \end{pmatrix}$", 1.0),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "2", 0.0),
        ("72", "I cannot say.", 0.0),
        ("72", "", 0.0),
        ("72", r"$\frac{72$", 0.0),
    ],
)
def test_answers_are_compared_as_mathematics(
    checker: MathChecker, judged: Callable[..., Trajectory], reference: str, completion: str, score: float
) -> None:
    assert checker.score(judged(completion, reference=reference)) == score


def test_a_completion_that_computes_for_ever_is_wrong_and_counted(
    judged: Callable[..., Trajectory], caplog: pytest.LogCaptureFixture
) -> None:
    checker = MathChecker(timeout_s=0.5)
    try:
        assert checker.score(judged(NEVER_DONE, reference="7", task_id="t/9")) == 0.0
        assert checker.num_unjudged == 1
        assert "could not judge sample 0 of task 't/9', which scores 0: no reply within 0.5 s (1 such" in caplog.text
        assert checker.score(judged("It is 7", reference="7")) == 1.0
    finally:
        checker.close()


@pytest.mark.parametrize("reference", ["", "  "])
def test_a_task_without_reference_is_an_error(checker: MathChecker, judged: Callable[..., Trajectory], reference: str) -> None:
    with pytest.raises(DataError, match="task 't/1' has no reference"):
        checker.score(judged("7", reference=reference))


def test_a_reference_that_cannot_be_read_is_the_fault_of_the_data(
    checker: MathChecker, judged: Callable[..., Trajectory]
) -> None:
    with pytest.raises(DataError, match="which math_verify cannot read"):
        checker.score(judged("7", reference="$$"))


def test_a_reference_that_was_not_read_in_time_is_not_called_unreadable(judged: Callable[..., Trajectory]) -> None:
    slow = MathChecker(timeout_s=1e-6)
    with pytest.raises(DataError, match="reference .7., which math_verify did not read within 1e-06 s"):
        slow.score(judged("7", reference="7"))
    slow.close()


@each_data_file("math500")
def test_answers_match_themselves_and_their_solutions(
    checker: MathChecker, judged: Callable[..., Trajectory], path: Path
) -> None:
    lines = records(path)
    tasks = lines[:: max(1, len(lines) // 125)]
    for text in ("answer", "solution"):
        wrong = [
            task["answer"]
            for task in tasks
            if not checker.score(judged(rf"\boxed{{{task[text]}}}" if text == "answer" else task[text], reference=task["answer"]))
        ]
        assert wrong == []


@each_data_file("gsm8k_model_solutions")
def test_solutions_are_judged_as_people_judged_them(checker: MathChecker, judged: Callable[..., Trajectory], path: Path) -> None:
    lines = records(path)
    for record in lines[:: max(1, len(lines) // 132)]:
        reference = record["ground_truth"].rpartition("A: ")[2].strip()
        for solution in (value for value in record.values() if isinstance(value, dict)):
            assert checker.score(judged(solution["solution"], reference=reference)) == solution["is_correct"]
