"""IFEval tasks: from the file to the reward."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from actors.config import IFEvalTaskConfig
from actors.rewards import REWARD_FUNCTIONS
from actors.rewards.ifeval.constraint import CHECKERS, constraints_in
from actors.tasks import build_task_sets
from cluster.errors import DataError
from cluster.types import Trajectory
from tests.actors.public_data import each_data_file, records

NO_COMMA: tuple[str, dict[str, Any]] = ("punctuation:no_comma", {})
THREE_WORDS: tuple[str, dict[str, Any]] = ("length_constraints:number_words", {"num_words": 3, "relation": "at least"})
UNKNOWN: tuple[str, dict[str, Any]] = ("change_case:upside_down", {})


def line(number: int, *constraints: tuple[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "key": number,
        "prompt": f"Prompt {number}",
        "instruction_id_list": [name for name, _ in constraints],
        "kwargs": [arguments for _, arguments in constraints],
        **changes,
    }


def write(folder: Path, *lines: dict[str, Any], unsupported: Literal["error", "drop"] = "error") -> IFEvalTaskConfig:
    path = folder / "input.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in lines))
    return IFEvalTaskConfig(path=str(path), unsupported=unsupported)


def test_constraints_travel_in_the_reference(tmp_path: Path) -> None:
    nulls = {"num_bullets": None, "num_words": 3, "relation": "at least"}  # some copies of the data name every argument
    config = write(tmp_path, line(1, NO_COMMA, (THREE_WORDS[0], nulls)), line(2, NO_COMMA))
    tasks = {task.task_id: task for task_set in build_task_sets(config) for task in task_set}
    assert tasks["input/1"].messages[0].content == "Prompt 1"
    assert tasks["input/1"].reference == (
        '[["punctuation:no_comma",{}],["length_constraints:number_words",{"num_words":3,"relation":"at least"}]]'
    )


@pytest.mark.parametrize(
    ("text", "share", "strict"),
    [("one two three", 1.0, 1.0), ("one, two, three", 0.5, 0.0), ("one two", 0.5, 0.0), ("one, two", 0.0, 0.0), ("", 0.0, 0.0)],
)
def test_the_reward_is_the_share_that_is_kept_or_all(
    tmp_path: Path, judged: Callable[..., Trajectory], text: str, share: float, strict: float
) -> None:
    train, _ = build_task_sets(write(tmp_path, line(1, NO_COMMA, THREE_WORDS), line(2, NO_COMMA, THREE_WORDS)))
    trajectory = judged(text, reference=train[0].reference)
    assert REWARD_FUNCTIONS["ifeval"](trajectory) == share
    assert REWARD_FUNCTIONS["ifeval_strict"](trajectory) == strict


@pytest.mark.parametrize("reference", ["", "7", "{}", "[]", '["a"]'])
@pytest.mark.parametrize("name", ["ifeval", "ifeval_strict"])
def test_a_task_of_another_kind_is_an_error(judged: Callable[..., Trajectory], name: str, reference: str) -> None:
    with pytest.raises(DataError, match=r"the ifeval rewards are for task.kind=ifeval"):
        REWARD_FUNCTIONS[name](judged("text", reference=reference))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(2, NO_COMMA, key="2"), "'key' is '2', expected a number"),
        (line(2, NO_COMMA, key=1), "id 'input/1' was used in line 1; ids must differ"),
        (line(2, NO_COMMA, prompt=""), "'prompt' is empty"),
        (line(2), "'instruction_id_list' must be a list with at least one id"),
        (line(2, NO_COMMA, kwargs=[]), "'kwargs' must be a list of 1 objects, one for each instruction id"),
        (line(2, NO_COMMA, kwargs=[None]), "'kwargs' must be a list of 1 objects, one for each instruction id"),
        (line(2, NO_COMMA, answer="x"), "unknown field 'answer'; known fields are key, prompt, instruction_id_list, kwargs"),
        (
            line(2, (THREE_WORDS[0], {"num_words": 3})),
            "length_constraints:number_words: relation: Missing required keyword only argument",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    config = write(tmp_path, line(1, NO_COMMA), bad)
    with pytest.raises(DataError) as caught:
        build_task_sets(config)
    assert str(caught.value).splitlines()[0] == f"{config.path}:2: {reason}"


def test_unknown_constraints_are_listed(tmp_path: Path) -> None:
    config = write(tmp_path, line(1, NO_COMMA), line(2, UNKNOWN), line(3, NO_COMMA, UNKNOWN), line(4, ("x:y", {"any": 1})))
    with pytest.raises(DataError, match=r"no checker knows change_case:upside_down \(2 tasks\), x:y \(1 tasks\); set task.unsup"):
        build_task_sets(config)


def test_unknown_constraints_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write(tmp_path, line(1, NO_COMMA), line(2, NO_COMMA, UNKNOWN), line(3, NO_COMMA), unsupported="drop")
    with caplog.at_level(logging.WARNING, logger="rayward"):
        train, held_out = build_task_sets(config)
    assert {task.task_id for task in (*train, *held_out)} == {"input/1", "input/3"}
    assert "left out 1 tasks" in caplog.text


@each_data_file("ifeval_input_data")
def test_a_file_is_read_whole_and_every_checker_is_needed(path: Path) -> None:
    train, held_out = build_task_sets(IFEvalTaskConfig(path=str(path)))
    assert len(train) + len(held_out) == len(records(path))
    found = {each.instruction_id for task in (*train, *held_out) for each in constraints_in(task.reference)}
    assert found == set(CHECKERS)
