"""Word problems in the format of GSM8K."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.config import GSM8KTaskConfig
from actors.rewards import REWARD_FUNCTIONS
from actors.tasks import build_task_sets
from cluster.errors import DataError
from cluster.types import Trajectory
from tests.actors.public_data import each_data_file, records


def write(folder: Path, *records: dict[str, Any]) -> GSM8KTaskConfig:
    path = folder / "sums.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return GSM8KTaskConfig(path=str(path), instruction="Be brief.")


def record(answer: str, question: str = "How many?") -> dict[str, Any]:
    return {"question": question, "answer": answer}


def test_the_reference_is_the_number_after_the_mark(tmp_path: Path) -> None:
    answers = ["3 and 4 are 7.\n#### 7", "#### 1,234,567", "#### -3", "a #### b #### 0.5 "]
    config = write(tmp_path, *(record(answer, f"Question {index}?") for index, answer in enumerate(answers)))
    train, held_out = build_task_sets(config)
    references = {task.task_id: task.reference for task in (*train, *held_out)}
    assert references == {"sums/1": "7", "sums/2": "1234567", "sums/3": "-3", "sums/4": "0.5"}
    assert train[0].messages[0].content.endswith("?\nBe brief.")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("It is 7."), "'answer' must end with #### and a number"),
        (record("#### seven"), "'answer' must end with #### and a number"),
        (record("#### 7 apples"), "'answer' must end with #### and a number"),
        ({"question": "How many?"}, "'answer' is missing"),
        (record("#### 7", question=" "), "'question' is empty"),
        ({**record("#### 7"), "id": "x"}, "unknown field 'id'; known fields are question, answer"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    config = write(tmp_path, record("#### 1"), bad)
    with pytest.raises(DataError) as caught:
        build_task_sets(config)
    assert str(caught.value).splitlines()[0] == f"{config.path}:2: {reason}"


@each_data_file("gsm8k_train")
def test_a_training_set_is_read_whole(path: Path) -> None:
    train, held_out = build_task_sets(GSM8KTaskConfig(path=str(path), instruction=""))
    lines = records(path)
    assert len(train) + len(held_out) == len(lines)
    assert 0.05 < len(held_out) / len(lines) < 0.2
    assert {task.messages for task in train}.isdisjoint(task.messages for task in held_out)
    by_id = {task.task_id: task for task in (*train, *held_out)}
    for number, line in enumerate(lines, start=1):
        task = by_id[f"gsm8k_train/{number}"]
        assert task.messages[0].content == line["question"]
        assert task.reference == line["answer"].rpartition("#### ")[2].replace(",", "")


@each_data_file("gsm8k_model_solutions")
def test_solutions_are_judged_as_people_judged_them(path: Path, judged: Callable[..., Trajectory]) -> None:
    """Their last line is "A: number"; what the authors call correct compares that number with the true one."""
    judgements = []
    for each in records(path):
        reference = each["ground_truth"].rpartition("A: ")[2].replace(",", "").strip()
        for solution in (value for value in each.values() if isinstance(value, dict)):
            score = REWARD_FUNCTIONS["final_number"](judged(solution["solution"], reference=reference))
            judgements.append((score, float(solution["is_correct"])))
    assert len(judgements) == 4 * len(records(path))
    assert [score for score, _ in judgements] == [is_correct for _, is_correct in judgements]
