"""Tasks that reasoning-gym generates."""

from typing import Any

import pytest

from actors.config import ReasoningGymTaskConfig
from actors.rewards.number_match import NUMBER
from actors.tasks import build_task_sets
from cluster.errors import ConfigError, DataError


def config(**changes: Any) -> ReasoningGymTaskConfig:
    values = {"dataset": "chain_sum", "options": {"max_terms": 2, "max_digits": 1}, "num_train": 20, "num_held_out": 10}
    return ReasoningGymTaskConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    pytest.importorskip("reasoning_gym")


def test_questions_are_all_different() -> None:
    train, held_out = build_task_sets(config(num_train=40, num_held_out=20))
    questions = [task.messages for task in (*train, *held_out)]
    assert (len(train), len(held_out), len(set(questions))) == (40, 20, 60)
    assert (train.name, held_out.name) == ("chain_sum/train", "chain_sum/held_out")
    assert len({task.task_id for task in (*train, *held_out)}) == 60


def test_references_are_the_answers() -> None:
    train, _ = build_task_sets(config(options={"min_terms": 2, "max_terms": 2, "max_digits": 1}, instruction="Be brief."))
    for task in train:
        question, instruction = task.messages[0].content.rsplit("\n", 1)
        left, operation, right = question.removesuffix(" =").split()[-3:]
        assert int(task.reference) == int(left) + int(operation + right)
        assert instruction == "Be brief."
        assert NUMBER.fullmatch(task.reference)


def test_without_instruction_the_question_stands_alone() -> None:
    train, _ = build_task_sets(config(instruction=""))
    assert train[0].messages[0].content.endswith(" =")


def test_the_seed_decides() -> None:
    assert build_task_sets(config(seed=1)) == build_task_sets(config(seed=1))
    assert build_task_sets(config(seed=1)) != build_task_sets(config(seed=2))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dataset": "chain_sums"}, "task.dataset='chain_sums' is not a data set of reasoning-gym; did you mean 'chain_sum'?"),
        ({"dataset": "qqqq"}, "it knows .*chain_sum"),
        ({"options": {"max_term": 2}}, "task.options={'max_term': 2} do not suit 'chain_sum': .*max_term"),
        ({"options": {"max_terms": 0}}, "do not suit 'chain_sum': max_terms must be"),
        ({"num_train": 1000}, r"num_train . task.num_held_out = 1010, but 'chain_sum' gave only \d+ different questions"),
    ],
)
def test_what_the_library_cannot_do_is_explained(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_task_sets(config(**changes))


def test_tasks_without_one_known_answer_are_refused() -> None:
    with pytest.raises(DataError, match="gives tasks without one known answer"):
        build_task_sets(config(dataset="rush_hour", options={}))
