"""Progress as plain lines, for logs."""

from rich.console import Console

from cluster.display.progress import RunView, StageProgress, clock, shown_metrics

MIN_LINE_INTERVAL_S = 2.0


class LineDisplay:
    """Plain lines for logs: stages as they change, steps at most every few seconds, the last step always."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line_s = float("-inf")

    def start(self, view: RunView) -> None:
        self._view = view
        self.note(f"run directory {view.run_dir}")

    def stop(self) -> None:
        """Lines need no cleaning up."""

    def stage_changed(self, stage: StageProgress) -> None:
        self.note(f"{stage.name} {stage.state}" + (f" in {clock(stage.wall_s)}" if stage.state != "running" else ""))

    def stepped(self, stage: StageProgress) -> None:
        now_s = self._view.now_s()
        if stage.current < stage.total and now_s - self._last_line_s < MIN_LINE_INTERVAL_S:
            return
        self._last_line_s = now_s
        self.note(step_line(stage, now_s))

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def step_line(stage: StageProgress, now_s: float) -> str:
    """`ppo step 3/25  reward +0.41  kl 1.2 nats  415 tok/s  eta 6m10s`."""
    parts = [f"{stage.name} step {stage.current}/{stage.total}"]
    parts += [f"{label} {value}".strip() for label, value in shown_metrics(stage)]
    eta_s = stage.eta_s(now_s)
    if eta_s and stage.current < stage.total:
        parts.append(f"eta {clock(eta_s)}")
    return "  ".join(parts)
