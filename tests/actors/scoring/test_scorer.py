"""Scorers, and the stream of rewards from pools of them: real Ray actors with fake judges."""

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.config import (
    BuiltInFunctionScorerConfig,
    HttpScorerConfig,
    PythonScorerConfig,
    RewardModelScorerConfig,
    SupervisionConfig,
)
from actors.scoring.remote import FromStore
from actors.scoring.reward_head import start_reward_model
from actors.scoring.reward_model import RewardModel
from actors.scoring.scorer import RewardFunctionScorer, RewardModelScorer
from actors.scoring.stage import ScorerPools, WeightedScorer, build_scorer_pools
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import ConfigError, DataError, RaywardError
from cluster.messages import Message
from cluster.processes.object_store import StoredObject
from cluster.processes.pool import ActorPool
from cluster.processes.reservations.seats import Seats
from cluster.types import Prompt, Score, ScoredGroup, StepScore, Task, Trajectory, TrajectoryGroup, Unscored
from tests.records import NO_FAILURES, arrived, completion, group_of


class LengthJudge(FromStore):
    """Scores a completion by its length, and remembers how many trajectories each call had."""

    def __init__(self) -> None:
        self._call_sizes: list[int] = []

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        self._call_sizes.append(len(trajectories))
        return [Score(value=float(len(trajectory.completion.text))) for trajectory in trajectories]

    def call_sizes(self) -> list[int]:
        return self._call_sizes


class GatedJudge(LengthJudge):
    """Answers nothing until its test opens the gate."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Event()

    def open(self) -> None:
        self._gate.set()

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        self._gate.wait()
        return super().score(trajectories)


class StepJudge(FromStore):
    """Gives one of its three points to the first token."""

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        return [Score(value=3.0, steps=(StepScore(token_index=0, score=1.0),))] * len(trajectories)


class HalfJudge(FromStore):
    """Gives a point to everything but "bad"."""

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score | Unscored]:
        return [
            Unscored(problem="it is bad") if trajectory.completion.text == "bad" else Score(value=1.0)
            for trajectory in trajectories
        ]


class BrokenJudge(FromStore):
    """Fails in the way that the completion names."""

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        match trajectories[0].completion.text:
            case "nan":
                return [Score(value=float("nan"))] * len(trajectories)
            case "short":
                return []
            case "refuse":
                raise DataError("no reference")
        raise ZeroDivisionError("oops")


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(local_ray: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


@pytest.fixture
def seats() -> Iterator[Seats]:
    taken = Seats(print)
    yield taken
    taken.close()


def _group(name: str, *texts: str, failures: Mapping[int, str] = NO_FAILURES) -> TrajectoryGroup:
    task = Task(task_id=name, messages=(Message(role="user", content="Say it. "),))
    prompt = Prompt(task=task, text="Say it. ", token_ids=(1,))
    group = group_of(prompt, {index: completion(2, text=text) for index, text in enumerate(texts)}, failures=failures)
    return replace(group, texts=StoredObject(ray.put(group.texts.fetch())))


def _scored(scoring: ScorerPools, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup]:
    return arrived(scoring.score_stream(groups))


def _actor(judge: type, *, max_concurrency: int = 1) -> Any:
    return ray.remote(judge).options(num_cpus=0, max_concurrency=max_concurrency).remote()


def _scoring(**judges: tuple[float, Sequence[Any]]) -> ScorerPools:
    return ScorerPools(
        {
            name: WeightedScorer(weight=weight, pool=ActorPool({f"{name} {index}": actor for index, actor in enumerate(actors)}))
            for name, (weight, actors) in judges.items()
        }
    )


def test_a_reward_is_the_weighted_sum_and_keeps_its_parts() -> None:
    scoring = _scoring(long=(2.0, [_actor(LengthJudge)]), brief=(-0.5, [_actor(LengthJudge)]))
    (scored,) = _scored(scoring, [_group("a", "four", "sixsix")])
    assert [reward.total for reward in scored.rewards] == [6.0, 9.0]  # 2 x 4 - 0.5 x 4; 2 x 6 - 0.5 x 6
    assert [dict(reward.breakdown) for reward in scored.rewards] == [{"long": 4.0, "brief": 4.0}, {"long": 6.0, "brief": 6.0}]


def test_step_scores_are_weighted_and_keep_their_tokens() -> None:
    scoring = _scoring(steps=(0.5, [_actor(StepJudge)]), brief=(-1.0, [_actor(LengthJudge)]))
    ((reward,),) = (scored.rewards for scored in _scored(scoring, [_group("a", "four")]))
    assert reward.total == 0.5 * 3.0 - 4.0
    assert reward.steps == (StepScore(token_index=0, score=0.5),)  # of the total; the other -3 belong to the end


def test_groups_that_arrive_while_a_scorer_is_busy_go_to_it_together() -> None:
    judge = _actor(GatedJudge, max_concurrency=2)

    def arriving() -> Iterator[TrajectoryGroup]:
        yield from (_group("a", "1", "22"), _group("b", "333"), _group("c", "4444"))
        ray.get(judge.open.remote())

    scored = list(_scored(_scoring(length=(1.0, [judge])), arriving()))
    assert {group.group.task_id: group.rewards[0].total for group in scored} == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert ray.get(judge.call_sizes.remote()) == [2, 2]


def test_groups_are_scored_while_others_are_still_to_come() -> None:
    judge = _actor(LengthJudge)
    exhausted: list[bool] = []

    def arriving() -> Iterator[TrajectoryGroup]:
        yield _group("a", "x")
        ray.get(judge.call_sizes.remote())  # answered after the call that scores "a"
        yield _group("b", "x")
        exhausted.append(True)

    stream = _scored(_scoring(length=(1.0, [judge])), arriving())
    assert next(stream).group.task_id == "a"
    assert not exhausted
    assert [scored.group.task_id for scored in stream] == ["b"]


def test_what_waits_goes_to_a_scorer_while_the_next_group_still_decodes() -> None:
    judge = _actor(GatedJudge, max_concurrency=2)
    judged: list[str] = []
    judged_before_the_last: list[str] = []

    def arriving() -> Iterator[TrajectoryGroup | None]:
        yield from (_group("a", "1"), _group("b", "22"))  # b waits, for the scorer is busy with a
        ray.get(judge.open.remote())
        for _ in range(1000):  # while nothing has come
            ray.get(judge.call_sizes.remote())
            yield None
            if len(judged) == 2:
                break
        judged_before_the_last.extend(judged)
        yield _group("c", "333")

    for scored in _scored(_scoring(length=(1.0, [judge])), arriving()):
        judged.append(scored.group.task_id)
    assert judged_before_the_last == ["a", "b"]
    assert judged == ["a", "b", "c"]


def test_what_waits_is_shared_among_idle_replicas() -> None:
    judges = [_actor(GatedJudge, max_concurrency=2) for _ in range(2)]

    def arriving() -> Iterator[TrajectoryGroup]:
        yield from (_group(str(number), "x") for number in range(2))
        for judge in judges:
            ray.get(judge.open.remote())

    scored = list(_scored(_scoring(length=(1.0, judges)), arriving()))
    assert len(scored) == 2
    assert [ray.get(judge.call_sizes.remote()) for judge in judges] == [[1], [1]]


def test_no_groups_give_no_scores() -> None:
    assert list(_scored(_scoring(length=(1.0, [_actor(LengthJudge)])), [])) == []


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("short", DataError, "'broken' returned 0 scores for 1"),
        ("refuse", DataError, "no reference"),
        ("crash", RaywardError, "actor 'broken 0' failed.*oops"),
    ],
)
def test_a_failure_names_the_scorer_or_the_task(failure: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(_scored(_scoring(broken=(1.0, [_actor(BrokenJudge)])), [_group("a", failure)]))


def test_a_run_without_scorers_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one scorer"):
        ScorerPools({})


def test_configured_scorers_start_and_answer(tmp_path: Path, seats: Seats) -> None:
    configs = (
        RewardModelScorerConfig(model=str(_reward_model_folder(tmp_path)), dtype="float32", num_threads=1, num_cpus=0.5),
        BuiltInFunctionScorerConfig(function="length", weight=-1.0),
    )
    scoring = build_scorer_pools(configs, prompt_format="plain", supervision=SupervisionConfig(), seats=seats, note=print)
    scoring.wait_until_ready()
    (scored,) = _scored(scoring, [_group("a", "x")])
    assert dict(scored.rewards[0].breakdown) == {"reward_model": 0.0, "length": 1.0}  # a new head; one token
    assert scored.rewards[0].total == -1.0


def test_a_function_of_the_user_starts_in_an_actor(seats: Seats) -> None:
    config = PythonScorerConfig(name="truth", path="operator:truth", weight=3.0, num_cpus=0)
    scoring = build_scorer_pools([config], prompt_format="plain", supervision=SupervisionConfig(), seats=seats, note=print)
    scoring.wait_until_ready()
    (scored,) = _scored(scoring, [_group("a", "x", "y")])
    assert [dict(reward.breakdown) for reward in scored.rewards] == [{"truth": 1.0}] * 2  # a trajectory is not empty
    assert [reward.total for reward in scored.rewards] == [3.0, 3.0]


def test_a_score_that_is_no_number_is_no_score_and_never_a_zero() -> None:
    (scored,) = _scored(_scoring(broken=(1.0, [_actor(BrokenJudge)])), [_group("a", "nan", "x")])
    assert scored.rewards == scored.samples == ()
    assert scored.problems.keys() == {0, 1}
    assert "not finite: {'total': nan, 'broken': nan}" in scored.problems[0]


def test_a_trajectory_without_a_score_leaves_the_others_of_its_group() -> None:
    scoring = _scoring(half=(2.0, [_actor(HalfJudge)]), length=(1.0, [_actor(LengthJudge)]))
    (scored,) = _scored(scoring, [_group("a", "good", "bad", "fine")])
    assert [sample.sample_index for sample in scored.samples] == [0, 2]
    assert [reward.total for reward in scored.rewards] == [6.0, 6.0]  # 2 x 1 + 4
    assert dict(scored.problems) == {1: "it is bad"}


def test_a_prompt_of_which_every_request_failed_has_nothing_to_judge() -> None:
    failed = _group("a", failures={0: "its request failed"})
    scoring = _scoring(length=(1.0, [_actor(LengthJudge)]))
    found = {scored.group.task_id: scored for scored in _scored(scoring, [failed, _group("b", "x")])}
    assert (found["a"].rewards, dict(found["a"].problems), found["a"].group) == ((), {}, failed)
    assert [reward.total for reward in found["b"].rewards] == [1.0]


def test_a_failing_function_of_the_user_is_named(seats: Seats) -> None:
    scoring = build_scorer_pools(
        [PythonScorerConfig(path="json:dumps", num_cpus=0)],
        prompt_format="plain",
        supervision=SupervisionConfig(),
        seats=seats,
        note=print,
    )
    (scored,) = _scored(scoring, [_group("a", "x")])
    assert scored.problems[0].startswith("reward function json:dumps raised TypeError")


def test_a_remote_scorer_starts_in_an_actor(seats: Seats) -> None:
    config = HttpScorerConfig.model_validate({"url": "http://127.0.0.1:1/", "max_retries": 0, "num_cpus": 0})
    scoring = build_scorer_pools([config], prompt_format="plain", supervision=SupervisionConfig(), seats=seats, note=print)
    scoring.wait_until_ready()
    (scored,) = _scored(scoring, [_group("a", "x")])
    assert scored.problems[0].startswith("scorer 'http' at http://127.0.0.1:1/: ConnectError")


def test_a_function_scores_each_trajectory() -> None:
    scorer = RewardFunctionScorer(BuiltInFunctionScorerConfig(function="repetition"))
    assert scorer.score(_group("a", "ha ha ha", "a b").texts.fetch().trajectories) == [
        Score(value=0.5),
        Score(value=0.0),
    ]  # "ha ha" twice: one of two is a repeat


@pytest.mark.parametrize(
    ("prompt_format", "expected"),
    [
        ("plain", "Say it. Done."),
        ("chat", "<|im_start|>user\nSay it. <|im_end|>\n<|im_start|>assistant\nDone.<|im_end|>\n"),
    ],
)
def test_a_reward_model_reads_prompt_and_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt_format: Any, expected: str
) -> None:
    read: list[str] = []

    def score_texts(self: RewardModel, texts: Sequence[str]) -> list[float]:
        read.extend(texts)
        return [0.0] * len(texts)

    monkeypatch.setattr(RewardModel, "score_texts", score_texts)
    config = RewardModelScorerConfig(model=str(_reward_model_folder(tmp_path)), dtype="float32", num_threads=1)
    RewardModelScorer(config, prompt_format).score(_group("a", "Done.").texts.fetch().trajectories)
    assert read == [expected]


def _reward_model_folder(path: Path) -> Path:
    start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=None).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path
