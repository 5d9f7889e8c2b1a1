"""Reward functions of a user, in real processes: sync, async, batched, and each way to go wrong."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from actors.config import PythonScorerConfig
from actors.scoring.python_scorer import PythonScorer
from cluster.errors import ConfigError
from cluster.types import Score, StepScore, Trajectory, Unscored

REWARDS = '''
import asyncio, os, sys, time

def words(trajectory):
    return len(trajectory.completion.text.split())

def odd(trajectory):
    match trajectory.completion.text:
        case "none": return None
        case "nan": return float("nan")
        case "text": return "1.0"
        case "true": return True
        case "numpy":
            import numpy
            return numpy.float32(0.5)
        case "steps": return {"score": 2, "steps": [(0, 0.5), (3, 1)]}
        case "bad steps": return {"score": 2, "steps": [(0.5, 1)]}
        case "no score": return {"steps": [(0, 1)]}
        case "raise": raise ValueError("no such thing")
        case "hang": time.sleep(60)
        case "exit": os._exit(3)
        case "quit": sys.exit(4)
    return 1

waiting = 0
most_waiting = 0

async def slow(trajectory):
    """How many calls waited at the same time, at most."""
    global waiting, most_waiting
    waiting += 1
    most_waiting = max(most_waiting, waiting)
    await asyncio.sleep(60 if trajectory.completion.text == "hang" else 0.02)
    waiting -= 1
    if trajectory.completion.text == "raise":
        raise ValueError("no such thing")
    return most_waiting

class Judge:
    async def __call__(self, trajectory):
        return 2

judge = Judge()

def wrapped(trajectory):
    return slow(trajectory)

def together(trajectories):
    return [len(trajectories)] * len(trajectories)

async def together_slowly(trajectories):
    await asyncio.sleep(0)
    return [len(trajectories)] * len(trajectories)

def too_few(trajectories):
    return [1.0]

def hang_together(trajectories):
    time.sleep(60)

def greedy(trajectory):
    match trajectory.completion.text:
        case "memory":
            bytearray(2 << 30)
        case "file":
            with open("large", "wb") as file:
                file.write(bytes(2 << 20))
        case "secret":
            return len(os.environ.get("A_SECRET", ""))
        case "folder":
            return os.listdir() in ([], ["large"])
        case "processes":
            import subprocess
            for _ in range(20):
                subprocess.Popen([sys.executable, "-c", "import time; left_by_a_reward = time.sleep(60)"])
            time.sleep(60)

loop_of_first_call = None

async def same_loop(trajectory):
    global loop_of_first_call
    loop_of_first_call = loop_of_first_call or asyncio.get_running_loop()
    return loop_of_first_call is asyncio.get_running_loop()
'''

Scorers = Callable[..., PythonScorer]


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scorers]:
    """A scorer of one of the functions above; keyword arguments are settings."""
    (tmp_path / "rewards_of_a_test.py").write_text(REWARDS)
    (tmp_path / "unwell_of_a_test.py").write_text("import nothing_like_it\ndef score(trajectory): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    started = []

    def start(function: str, **settings: object) -> PythonScorer:
        path = function if ":" in function else f"rewards_of_a_test:{function}"
        started.append(PythonScorer(PythonScorerConfig.model_validate({"path": path, **settings})))
        return started[-1]

    yield start
    for each in started:
        each.close()


def values(*scores: float) -> list[Score]:
    return [Score(value=score) for score in scores]


def test_a_function_judges_each_trajectory(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    words = scorer("words")
    assert words.score([]) == []
    assert words.score([judged("one"), judged("two words"), judged("")]) == values(1.0, 2.0, 0.0)


def test_any_finite_real_number_is_a_score(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    scores = scorer("odd").score([judged("true"), judged("numpy"), judged("other")])
    assert scores == values(1.0, 0.5, 1.0)
    assert [type(score.value) for score in scores if isinstance(score, Score)] == [float] * 3


def test_a_function_may_give_points_to_single_steps(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    steps = (StepScore(token_index=0, score=0.5), StepScore(token_index=3, score=1.0))
    assert scorer("odd").score([judged("steps")]) == [Score(value=2.0, steps=steps)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("none", "returned None: None is not a number"),
        ("text", "returned '1.0': '1.0' is not a number"),
        ("no score", "returned {'steps': [(0, 1)]}: None is not a number"),
        ("bad steps", "returned {'score': 2, 'steps': [(0.5, 1)]}: 'float' object cannot be interpreted as an integer"),
        ("nan", "returned nan: nan is not finite"),
        ("raise", "raised ValueError: no such thing"),
        ("hang", "no result within 0.2 s"),
        ("exit", "its process ended with status 3"),
        ("quit", "its process ended with status 4"),
    ],
)
def test_a_failure_is_told_and_the_others_are_judged(
    scorer: Scorers, judged: Callable[..., Trajectory], text: str, what: str
) -> None:
    odd = scorer("odd", timeout_s=0.2)
    before, failed, after = odd.score([judged("fine"), judged(text), judged("true")])
    assert (before, after) == (Score(value=1.0), Score(value=1.0))
    assert failed == unscored("odd", what)


def unscored(function: str, what: str) -> Unscored:
    return Unscored(problem=f"reward function rewards_of_a_test:{function} {what}")


def test_a_function_that_always_hangs_costs_three_time_outs(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    scores = scorer("odd", timeout_s=0.2).score([judged("hang")] * 9)
    assert scores[:3] == [unscored("odd", "no result within 0.2 s")] * 3
    assert scores[3:] == [unscored("odd", "was not asked, after 3 others of the call had stopped it")] * 6


def test_async_calls_wait_together_up_to_the_limit(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    scores = scorer("slow", max_concurrency=3).score([judged("x")] * 7)
    assert max(score.value for score in scores if isinstance(score, Score)) == 3
    assert len(scores) == 7


def test_an_async_hang_ends_one_call_and_not_the_others(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    slow = scorer("slow", timeout_s=0.2)
    scores = slow.score([judged("x"), judged("hang"), judged("raise")])
    assert isinstance(scores[0], Score)
    assert scores[1:] == [unscored("slow", "no result within 0.2 s"), unscored("slow", "raised ValueError: no such thing")]


def test_a_function_that_takes_too_much_is_contained(
    scorer: Scorers, judged: Callable[..., Trajectory], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("A_SECRET", "abc")
    greedy = scorer("greedy", max_memory_gib=1.0, max_file_mib=1.0, timeout_s=5.0)
    memory, file, secret, folder = greedy.score([judged(text) for text in ("memory", "file", "secret", "folder")])
    assert memory == Unscored(problem="reward function rewards_of_a_test:greedy raised MemoryError: ")
    assert isinstance(file, Unscored)
    assert "File too large" in file.problem
    assert secret == Score(value=0.0)
    assert folder == Score(value=1.0)  # an empty one of its own
    assert scorer("greedy", environment=["A_SECRET"]).score([judged("secret")]) == values(3.0)


def test_what_a_function_started_ends_with_it(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    (bomb,) = scorer("greedy", timeout_s=2.0).score([judged("processes")])
    assert bomb == unscored("greedy", "no result within 2 s")
    started = [process for process in psutil.process_iter() if "left_by_a_reward" in " ".join(cmdline_of(process))]
    # A signal is sent, not awaited: those that are still listed have it before them. None would end by itself in that time.
    _, left = psutil.wait_procs(started, timeout=15)
    assert not [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_settings_say_whose_processes_a_function_has(scorer: Scorers) -> None:
    assert [scorer("words", **settings)._child._separate for settings in ({}, {"separate_user": False})] == [True, False]


def test_a_function_that_starts_too_many_processes_is_killed_with_them(
    scorer: Scorers, judged: Callable[..., Trajectory]
) -> None:
    (bomb,) = scorer("greedy", timeout_s=50.0, max_processes=8).score([judged("processes")])
    assert isinstance(bomb, Unscored)
    assert re.search(r"its process had \d+ processes and threads, more than max_processes=8, and was killed", bomb.problem)


def cmdline_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_what_returns_an_awaitable_is_awaited(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    assert scorer("judge").score([judged("x")] * 2) == values(2.0, 2.0)
    assert scorer("wrapped").score([judged("x")]) == values(1.0)


def test_async_calls_share_one_event_loop(scorer: Scorers, judged: Callable[..., Trajectory]) -> None:
    same_loop = scorer("same_loop")
    assert same_loop.score([judged("x")]) + same_loop.score([judged("x")]) == values(1.0, 1.0)


@pytest.mark.parametrize("function", ["together", "together_slowly"])
def test_a_batched_function_sees_all_at_once(scorer: Scorers, judged: Callable[..., Trajectory], function: str) -> None:
    assert scorer(function, batched=True).score([judged("x")] * 3) == values(3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("function", "what"),
    [("too_few", "ValueError: returned 1 scores for 2 trajectories"), ("hang_together", "no result within 0.2 s")],
)
def test_a_batched_failure_leaves_all_without_a_score(
    scorer: Scorers, judged: Callable[..., Trajectory], function: str, what: str
) -> None:
    batched = scorer(function, batched=True, timeout_s=0.2)
    assert batched.score([judged("x"), judged("x")]) == [unscored(function, what)] * 2


def test_a_module_that_cannot_be_imported_is_told_at_the_start(scorer: Scorers) -> None:
    with pytest.raises(ConfigError, match="unwell_of_a_test:score could not start: ModuleNotFoundError: .*nothing_like_it"):
        scorer("unwell_of_a_test:score").score([])
