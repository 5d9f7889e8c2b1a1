"""What a person watches while a run runs: stages, steps, the numbers that matter, and how long it still takes."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

StageState = Literal["pending", "running", "done", "failed", "interrupted"]
ETA_WINDOW_STEPS = 5
# metric -> (label, format), in order of display; those a step does not report are left out
SHOWN_METRICS = {
    "score/mean": ("reward", "{:+.2f}"),
    "policy/ref_kl_nats_per_completion": ("kl", "{:.1f} nats"),
    "policy/version": ("policy", "v{:.0f}"),
    "reward_model/loss": ("loss", "{:.3f}"),
    "reward_model/train_accuracy": ("accuracy", "{:.1%}"),
    "episode/return_mean": ("return", "{:+.2f}"),
    "episode/expected_return": ("greedy, discounted", "{:+.3f}"),
    "episode/length_mean": ("length", "{:.0f} steps"),
    "episode/epsilon": ("epsilon", "{:.2f}"),
    "planning/start_value": ("value", "{:+.4f}"),
    "sweep/best": ("best", "{:.4g}"),
    "planning/max_change": ("change", "{:.1e}"),
    "rollout/completion_tokens_mean": ("length", "{:.0f} tok"),
    "rollout/tokens_per_s": ("", "{:.0f} tok/s"),
    "reward_model/texts_per_s": ("", "{:.1f} texts/s"),
}


@dataclass(slots=True, kw_only=True)
class StageProgress:
    """One stage. Written by `RunView`, read by displays."""

    name: str
    state: StageState = "pending"
    started_s: float = 0.0  # on the view's clock
    wall_s: float = 0.0  # once it has ended
    current: int = 0  # steps completed
    total: int = 0  # 0: a stage without steps
    step_ends: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=ETA_WINDOW_STEPS + 1))  # (step, its end)
    metrics: dict[str, float] = field(default_factory=dict)

    def seconds(self, now_s: float) -> float:
        return now_s - self.started_s if self.state == "running" else self.wall_s

    def eta_s(self, now_s: float) -> float | None:
        """Seconds to the last step at the mean pace of the latest steps; None before the second one.

        The first step says nothing: what a stage starts before it takes longer than a step.
        """
        if len(self.step_ends) < 2 or self.state != "running":
            return None
        (first_step, first_end_s), (last_step, last_end_s) = self.step_ends[0], self.step_ends[-1]
        pace_s = (last_end_s - first_end_s) / max(1, last_step - first_step)
        return max(0.0, (self.total - last_step) * pace_s - (now_s - last_end_s))


class Display(Protocol):
    """Where progress is shown."""

    def start(self, view: "RunView") -> None: ...
    def stop(self) -> None: ...
    def stage_changed(self, stage: StageProgress) -> None: ...
    def stepped(self, stage: StageProgress) -> None: ...
    def note(self, text: str) -> None: ...


class RunView:
    """Progress of one run. The driver reports to it; a display shows it. A context manager."""

    def __init__(
        self, stages: Sequence[str], run_dir: Path, display: Display, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.stages = {name: StageProgress(name=name) for name in stages}
        self.run_dir = run_dir
        self._display = display
        self._now_s = now_s
        self._started_s = now_s()

    @property
    def elapsed_s(self) -> float:
        return self.now_s() - self._started_s

    @property
    def current(self) -> StageProgress | None:
        """The stage that runs; between stages, the last one."""
        begun = [stage for stage in self.stages.values() if stage.state != "pending"]
        running = [stage for stage in begun if stage.state == "running"]
        return next(reversed(running or begun), None)

    def now_s(self) -> float:
        return self._now_s()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` as running while inside; a name that was not announced joins the list."""
        stage = self.stages[name] = StageProgress(name=name, state="running", started_s=self.now_s())
        self._display.stage_changed(stage)
        outcome: StageState = "failed"
        try:
            yield
            outcome = "done"
        except KeyboardInterrupt:
            outcome = "interrupted"
            raise
        finally:
            stage.wall_s = stage.seconds(self.now_s())
            stage.state = outcome
            self._display.stage_changed(stage)

    def step(self, current: int, total: int, metrics: Mapping[str, float]) -> None:
        """Say that `current` of `total` steps of the running stage are complete."""
        stage = self.current
        if stage is None or stage.state != "running":
            raise ValueError("step() reports on a running stage; call it inside `with view.stage(name):`")
        stage.current, stage.total, stage.metrics = current, total, dict(metrics)
        stage.step_ends.append((current, self.now_s()))
        self._display.stepped(stage)

    def note(self, text: str) -> None:
        """One line for the person: a decision, a surprise, a path."""
        self._display.note(text)

    def __enter__(self) -> Self:
        self._started_s = self.now_s()
        self._display.start(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._display.stop()


def shown_metrics(stage: StageProgress) -> list[tuple[str, str]]:
    """(label, formatted value) of the metrics a person follows."""
    return [
        (label, template.format(stage.metrics[name]))
        for name, (label, template) in SHOWN_METRICS.items()
        if name in stage.metrics
    ]


def clock(seconds: float) -> str:
    """7s, 6m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
