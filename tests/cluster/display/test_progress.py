"""Lines for logs, a panel for terminals, and a terminal that is whole afterwards."""

import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cluster.display.lines import LineDisplay
from cluster.display.panel import PanelDisplay
from cluster.display.progress import RunView, clock
from cluster.display.view import build_view

STAGES = ("fetch", "reward model", "train")
RUN = Path("runs/movie-night")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
METRICS = {
    "score/mean": 0.41,
    "policy/ref_kl_nats_per_completion": 1.2,
    "policy/version": 6.0,
    "rollout/tokens_per_s": 415.3,
    "optim/grad_norm": 9.0,
}


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=100, height=40, _environ={"TERM": "xterm-256color"})


def output_of(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_lines_tell_stages_steps_and_eta() -> None:
    console, time = Console(file=StringIO(), width=40), FakeClock()
    with RunView(STAGES, RUN, LineDisplay(console), now_s=time) as view, view.stage("train"):
        time.now_s = 10.0
        view.step(1, 25, {"score/mean": -0.5})
        time.now_s = 30.0
        view.step(3, 25, METRICS)
    assert output_of(console).splitlines() == [
        "run directory runs/movie-night",
        "train running",
        "train step 1/25  reward -0.50",  # what came before the first step is no pace
        "train step 3/25  reward +0.41  kl 1.2 nats  policy v6  415 tok/s  eta 3m40s",  # two steps in 20 s: 22 x 10 s
        "train done in 30s",
    ]


def test_quick_steps_are_thinned_but_the_last_is_told() -> None:
    console, time = Console(file=StringIO(), width=200), FakeClock()
    with RunView(STAGES, RUN, LineDisplay(console), now_s=time) as view, view.stage("train"):
        for step in range(1, 101):
            time.now_s += 0.125
            view.step(step, 100, {})
    told = [line.split("  ")[0] for line in output_of(console).splitlines() if "step" in line]
    assert told == [f"train step {step}/100" for step in (1, 17, 33, 49, 65, 81, 97, 100)]  # every 2 s


@pytest.mark.parametrize(("error", "state"), [(OSError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_stage_that_raises_says_how_it_ended_and_the_error_goes_on(error: type[BaseException], state: str) -> None:
    console = Console(file=StringIO(), width=80)
    with pytest.raises(error), RunView(STAGES, RUN, LineDisplay(console)) as view, view.stage("fetch"):
        raise error
    assert f"fetch {state} in 0s" in output_of(console)


def test_a_step_outside_a_stage_is_an_error() -> None:
    view = build_view(STAGES, RUN, Console(file=StringIO()))
    with pytest.raises(ValueError, match="running stage"):
        view.step(1, 2, {})


def test_text_is_not_read_as_markup() -> None:
    console = Console(file=StringIO(), width=80)
    build_view(STAGES, RUN, console).note("[bold]a path [/x] :smile:")
    assert "[bold]a path [/x]" in output_of(console)


def test_panel_shows_stages_bar_and_numbers() -> None:
    console, time = terminal(), FakeClock()
    with RunView(STAGES, RUN, PanelDisplay(console), now_s=time) as view:
        with view.stage("fetch"):
            time.now_s = 4.0
        with view.stage("train"):
            time.now_s = 20.0
            view.step(4, 25, METRICS)
            time.now_s = 24.0
            view.step(5, 25, METRICS)
            panel = Console(file=StringIO(), width=100)
            panel.print(view._display._render())  # type: ignore[attr-defined]
    text = output_of(panel)
    for expected in (
        "fetch",
        "4s",
        "reward model",
        "step 5/25",
        "eta 1m20s",
        "reward +0.41",
        "policy v6",
        "runs/movie-night",
        "elapsed 24s",
    ):
        assert expected in text  # eta: 20 steps of 4 s


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_terminal_and_streams_are_given_back_after_an_exception(error: type[BaseException]) -> None:
    console, stdout, stderr = terminal(), sys.stdout, sys.stderr
    with pytest.raises(error), RunView(STAGES, RUN, PanelDisplay(console)) as view, view.stage("train"):
        raise error
    written = output_of(console)
    assert written.rindex(SHOW_CURSOR) > written.rindex(HIDE_CURSOR)
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


def test_a_view_on_stderr_leaves_stdout_alone() -> None:
    console = Console(stderr=True, force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})
    stdout = sys.stdout
    with RunView(STAGES, RUN, PanelDisplay(console)):
        assert sys.stdout is stdout


def test_terminals_get_a_panel_and_everything_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert isinstance(build_view(STAGES, RUN, terminal())._display, PanelDisplay)
    assert isinstance(build_view(STAGES, RUN, Console(file=StringIO()))._display, LineDisplay)
    monkeypatch.setenv("CI", "true")
    assert isinstance(build_view(STAGES, RUN, terminal())._display, LineDisplay)


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 370, 7500)] == ["0s", "1m00s", "6m10s", "2h05m"]
