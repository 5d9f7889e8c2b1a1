"""The token environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env

from cluster.messages import Message
from cluster.types import Prompt, Task, Trajectory
from learners.environments.token import Judge, TokenEnvironment, TokenEnvironments

LETTERS = "abcdef."  # 6 ends a text
END, PADDING = 6, 7


def prompt(text: str) -> Prompt:
    ids = tuple(map(LETTERS.index, text))
    return Prompt(task=Task(task_id=text, messages=(Message(role="user", content=text),)), text=text, token_ids=ids)


def decode(ids: Sequence[int]) -> str:
    return "".join(LETTERS[each] for each in ids if each < END)


def build(*texts: str, judged: list[Trajectory] | None = None, max_completion_tokens: int = 4) -> TokenEnvironment:
    def judge(trajectories: Sequence[Trajectory]) -> list[float]:
        if judged is not None:
            judged.extend(trajectories)
        return number_of_as(trajectories)

    return build_with(judge, *texts, max_completion_tokens=max_completion_tokens)


def number_of_as(trajectories: Sequence[Trajectory]) -> list[float]:
    return [float(trajectory.completion.text.count("a")) for trajectory in trajectories]


def build_with(judge: Judge, *texts: str, max_completion_tokens: int = 4) -> TokenEnvironment:
    return TokenEnvironment(
        [prompt(text) for text in texts or ("ab",)],
        judge,
        decode,
        tokens=Discrete(8),
        end_id=END,
        padding_id=PADDING,
        max_completion_tokens=max_completion_tokens,
    )


def play(env: TokenEnvironment, actions: Sequence[int]) -> list[tuple[list[int], float, bool, bool]]:
    env.reset(seed=0)
    steps: list[Any] = [env.step(np.int64(action)) for action in actions]
    return [(observation.tolist(), reward, is_terminal, is_cut) for observation, reward, is_terminal, is_cut, _ in steps]


def test_gymnasium_finds_nothing_wrong() -> None:
    check_env(build("ab", "abc"), skip_render_check=True)


def test_the_score_comes_with_the_end_of_sequence() -> None:
    judged: list[Trajectory] = []
    steps = play(build(judged=judged), [0, 0, END])
    assert steps == [
        ([3, 0, 1, 0, 7, 7, 7], 0.0, False, False),
        ([4, 0, 1, 0, 0, 7, 7], 0.0, False, False),
        ([5, 0, 1, 0, 0, 6, 7], 2.0, True, False),
    ]
    [trajectory] = judged
    assert trajectory.prompt.text == "ab"
    assert (trajectory.completion.text, trajectory.completion.finish_reason) == ("aa", "stop")
    assert trajectory.completion.token_ids.tolist() == [0, 0, END]


def test_the_last_possible_token_ends_the_text_too() -> None:
    judged: list[Trajectory] = []
    steps = play(build(judged=judged), [0, 1, 2, 0])
    assert [step[1:] for step in steps] == [(0.0, False, False)] * 3 + [(2.0, True, False)]
    assert judged[0].completion.finish_reason == "length"


def test_a_seed_draws_the_prompts_and_each_comes() -> None:
    def starts(seed: int) -> list[list[int]]:
        env = build("a", "bc", "def")
        return [env.reset(seed=seed)[0].tolist()] + [env.reset()[0].tolist() for _ in range(20)]

    assert starts(0) == starts(0) != starts(1)
    assert {start[0] for start in starts(0)} == {1, 2, 3}


def test_it_shows_the_text_and_forgets_the_last_episode() -> None:
    env = build()
    play(env, [2, 3])
    assert env.render() == "abcd"
    env.reset()
    assert env.render() == "ab"


def test_texts_that_end_together_are_judged_together() -> None:
    calls: list[list[str]] = []

    def judge(trajectories: Sequence[Trajectory]) -> list[float]:
        calls.append([trajectory.completion.text for trajectory in trajectories])
        return number_of_as(trajectories)

    envs = TokenEnvironments(build_with, 3, judge)
    starts: Any = envs.reset(seed=0)[0]
    assert starts.tolist() == [[2, 0, 1, 7, 7, 7, 7]] * 3
    steps = [envs.step(np.array(actions)) for actions in ([0, 0, 1], [END, 0, END], [5, 0, 5], [0, 0, END])]
    assert calls == [["a", "b"], ["aaaa", ""]]
    assert [rewards.tolist() for _, rewards, *_ in steps] == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 4, 0]]
    assert [terminations.tolist() for _, _, terminations, *_ in steps][1] == [True, False, True]
    assert steps[2][0].tolist() == [[2, 0, 1, 7, 7, 7, 7], [5, 0, 1, 0, 0, 0, 7], [2, 0, 1, 7, 7, 7, 7]]  # begun anew
