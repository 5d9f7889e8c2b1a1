"""Greedy baselines and dynamic sampling, over a collector that records what it is asked."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.messages import Message
from cluster.storage.ledger import TrajectoryLedger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.types import Prompt, Reward, SamplingParameters, ScoredGroup, Task, TrajectoryGroup
from learners.steps.collection import Collected, DynamicSampling, GreedyBaseline, has_contrast
from learners.steps.prompt_schedule import PromptSchedule
from tests.records import completion, group_of, sampled


def _prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text=f"go {index}", token_ids=(index + 1,))


SAMPLING = SamplingParameters(temperature=0.7, top_p=1.0, max_completion_tokens=4, samples_per_prompt=1, seed=5)
PROMPTS = [_prompt(index) for index in range(12)]


class RecordingCollector:
    """Scores both completions of a prompt 0, or 0 and 1 where the prompt's task is among the useful ones."""

    def __init__(self, useful: Sequence[int]) -> None:
        self._useful = {f"task-{index}" for index in useful}
        self.asked: list[list[str]] = []

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        self.asked.append([prompt.task.task_id for prompt in prompts])
        return Collected(groups=tuple(self.group(prompt) for prompt in prompts), metrics={"rounds": 1.0})

    def group(self, prompt: Prompt) -> ScoredGroup:
        second = float(prompt.task.task_id in self._useful)
        return ScoredGroup(
            group=group_of(prompt, {index: completion(1, text="x") for index in range(2)}),
            rewards=tuple(Reward(total=score, breakdown={}) for score in (0.0, second)),
        )


def _ledger(folder: Path) -> LedgerWriter:
    return LedgerWriter(TrajectoryLedger(folder))


def _schedule() -> PromptSchedule:
    return PromptSchedule(PROMPTS, prompts_per_step=4, seed=0)


def _ids(collected: Collected) -> list[str]:
    return [scored.group.task_id for scored in collected.groups]


def test_groups_without_contrast_are_replaced_by_other_prompts(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[0, 1, *range(4, 12)])
    collected = DynamicSampling(inner, _schedule(), _ledger(tmp_path), max_rounds=3).collect(0, PROMPTS[:4])
    assert len(collected.groups) == 4
    assert all(has_contrast(scored) for scored in collected.groups)
    # Tasks 2 and 3 are replaced. Half of the prompts were useful, so four should bring two groups; two are then too many.
    assert [len(asked) for asked in inner.asked] == [4, 4]
    assert _ids(collected) == ["task-0", "task-1", *inner.asked[1][:2]]
    assert [each.group.task_id for each in collected.left_out] == [*inner.asked[1][2:], "task-2", "task-3"]
    assert collected.metrics == {
        "rounds": 1.0,
        "buffer/prompts_asked_ahead": 0.0,
        "buffer/resampling_rounds": 1.0,
        "buffer/groups_without_contrast": 2.0,
        "buffer/groups_filled_up": 0.0,
    }


def test_one_round_asks_for_what_is_missing_at_the_share_that_was_useful(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[0, 1, 2, *range(4, 12, 2)])
    collected = DynamicSampling(inner, _schedule(), _ledger(tmp_path), max_rounds=3).collect(0, PROMPTS[:4])
    assert [len(asked) for asked in inner.asked][:2] == [4, 2]  # 1 missing at 3 of 4
    assert all(has_contrast(scored) for scored in collected.groups)
    hopeless = RecordingCollector(useful=[])
    DynamicSampling(hopeless, _schedule(), _ledger(tmp_path), max_rounds=2).collect(0, PROMPTS[:4])
    assert [len(asked) for asked in hopeless.asked] == [4, 4, 4]  # a step's worth at most


def _steps(folder: Path, inner: RecordingCollector, steps: range, *, max_rounds: int = 2) -> list[Collected]:
    """So many steps of a run whose ledger lies in `folder`, with a sampler of their own, as after a resume."""
    ledger = _ledger(folder)
    sampling = DynamicSampling(inner, _schedule(), ledger, max_rounds=max_rounds)
    found = []
    for step in steps:
        found.append(sampling.collect(step, _schedule().prompts_of(step)))
        ledger.begin(step, sampled(found[-1].groups, found[-1].left_out))
    ledger.finish()
    return found


def test_further_prompts_are_asked_ahead_at_the_share_that_was_useful_in_the_steps_before(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[0, 2, 4, *range(5, 12)])
    TrajectoryLedger(tmp_path).record(0, sampled([inner.group(prompt) for prompt in PROMPTS[:5]]))  # three useful of five
    collected = DynamicSampling(inner, _schedule(), _ledger(tmp_path), max_rounds=1).collect(1, PROMPTS[:4])
    assert [len(asked) for asked in inner.asked] == [7]  # 4 x 5 / 3
    assert collected.metrics["buffer/prompts_asked_ahead"] == 3
    assert _ids(collected) == ["task-0", "task-2", *inner.asked[0][4:6]]
    assert [each.group.task_id for each in collected.left_out] == [inner.asked[0][6], "task-1", "task-3"]


def test_engines_run_empty_less_often_where_the_steps_before_are_known(tmp_path: Path) -> None:
    """Once a wave, while its last completion decodes."""
    useful = range(0, 12, 2)
    with_past = _steps(tmp_path / "whole", RecordingCollector(useful), range(12))
    without = [_steps(tmp_path / str(step), RecordingCollector(useful), range(step, step + 1))[0] for step in range(12)]
    waves, waves_without = (
        sum(1 + collected.metrics["buffer/resampling_rounds"] for collected in steps) for steps in (with_past, without)
    )
    assert (waves, waves_without) == (15, 28)


def test_a_resumed_run_asks_for_what_the_run_that_never_stopped_asked(tmp_path: Path) -> None:
    whole, before, after = (RecordingCollector(useful=[1, 2, 5, 7, 8]) for _ in range(3))
    uninterrupted = _steps(tmp_path / "whole", whole, range(6))
    _steps(tmp_path / "resumed", before, range(3))
    TrajectoryLedger(tmp_path / "resumed").discard_from(2)
    assert _steps(tmp_path / "resumed", after, range(2, 6)) == uninterrupted[2:]
    assert before.asked[:1] == whole.asked[:1]
    assert after.asked == whole.asked[-len(after.asked) :]


def test_what_is_asked_ahead_is_bounded_and_counts_as_asked(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[])
    _steps(tmp_path, inner, range(2))
    assert [len(asked) for asked in inner.asked] == [4, 4, 4, 8, 4]  # twice a step's worth besides its own


def test_greedy_completions_and_those_without_a_score_are_no_contrast(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[])
    flat = [replace(inner.group(prompt), greedy=_other_score(inner.group(prompt))) for prompt in PROMPTS[:4]]
    broken = [replace(each, rewards=each.rewards[:1], problems={1: "the judge fell asleep"}) for each in flat[2:]]
    TrajectoryLedger(tmp_path).record(0, sampled([*flat[:2], *broken]))
    DynamicSampling(inner, _schedule(), _ledger(tmp_path), max_rounds=1).collect(1, PROMPTS[:4])
    assert len(inner.asked[0]) == 8


def _other_score(scored: ScoredGroup) -> ScoredGroup:
    """Of one completion."""
    prompt = scored.group.texts.fetch().prompt
    return ScoredGroup(group=group_of(prompt, {0: completion(1, text="x")}), rewards=(Reward(total=9.0, breakdown={}),))


def test_no_prompt_is_asked_twice_in_a_step(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[5])
    DynamicSampling(inner, _schedule(), _ledger(tmp_path), max_rounds=9).collect(0, PROMPTS[:4])
    asked = [task_id for round_ids in inner.asked for task_id in round_ids]
    assert len(set(asked)) == len(asked)


def test_the_search_is_bounded_and_fills_up_in_the_order_asked(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[2])
    collected = DynamicSampling(inner, _schedule(), _ledger(tmp_path), max_rounds=1).collect(0, PROMPTS[:4])
    assert len(inner.asked) == 2
    assert _ids(collected)[0] == "task-2"
    assert _ids(collected)[1:] == ["task-0", "task-1", "task-3"]
    assert collected.metrics["buffer/groups_filled_up"] == 3
    assert collected.metrics["buffer/groups_without_contrast"] == 7  # of eight asked


def test_a_task_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    inner = RecordingCollector(useful=[])
    DynamicSampling(inner, PromptSchedule(PROMPTS[:5], prompts_per_step=4, seed=0), _ledger(tmp_path), max_rounds=9).collect(
        0, PROMPTS[:4]
    )
    assert [len(asked) for asked in inner.asked] == [4, 1]


def test_further_prompts_depend_on_the_step_alone() -> None:
    first, again = (_schedule().further_prompts(3, PROMPTS[:4], count=3) for _ in range(2))
    assert first == again
    assert not {prompt.task.task_id for prompt in first} & {prompt.task.task_id for prompt in PROMPTS[:4]}
    assert _schedule().further_prompts(4, PROMPTS[:4], count=8) != _schedule().further_prompts(5, PROMPTS[:4], count=8)


def test_the_greedy_score_of_a_prompt_is_the_baseline_of_its_group() -> None:
    rollouts = RecordingRollouts()
    collected = GreedyBaseline(rollouts, ScoringByText(), SAMPLING).collect(0, PROMPTS[:3])
    assert len(rollouts.waves) == 1  # no engine waits for the last greedy completion before it samples
    assert [(task_id, way.temperature, way.samples_per_prompt) for task_id, way in rollouts.waves[0]] == [
        (f"task-{task}", *way) for task in range(3) for way in ((0.7, 1), (0.0, 1))
    ]
    assert _ids(collected) == ["task-0", "task-1"]  # though the last one finished first
    assert [scored.greedy_score for scored in collected.groups] == [10.0, 11.0]
    assert [[reward.total for reward in scored.rewards] for scored in collected.groups] == [[0.0], [1.0]]  # untouched
    assert [scored.group.task_id for scored in collected.left_out] == ["task-2"]  # no score for its baseline
    every = [*collected.groups, *collected.left_out]
    assert [scored.greedy and _text(scored.greedy) for scored in every] == ["10", "11", "12"]


def _text(scored: ScoredGroup) -> str:
    return scored.group.texts.fetch().trajectories[0].completion.text


class RecordingRollouts:
    """Completions whose text is the task's number, 10 more where they are greedy; the last request finishes first."""

    def __init__(self) -> None:
        self.waves: list[list[tuple[str, SamplingParameters]]] = []

    def collect_each(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]]
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup] | None]:
        self.waves.append([(prompt.task.task_id, sampling) for prompt, sampling in requests])
        for prompt, sampling in reversed(requests):
            number = int(prompt.task.task_id.split("-")[1]) + 10 * (sampling.temperature == 0)
            yield None  # it takes a while
            yield sampling, group_of(prompt, {0: completion(1, text=str(number))})


class ScoringByText:
    """A completion's score is its text; 12 has none."""

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup]:
        for group in groups:
            if group is None:
                continue
            score = float(group.texts.fetch().trajectories[0].completion.text)
            if score == 12:
                yield ScoredGroup(group=group, rewards=(), problems={0: "the judge fell asleep"})
            else:
                yield ScoredGroup(group=group, rewards=(Reward(total=score, breakdown={}),))
