"""The live panel of a run in a terminal."""

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.display.progress import RunView, StageProgress, clock, shown_metrics

REFRESH_PER_S = 4
MAX_PANEL_COLUMNS = 100
STATE_STYLES = {"pending": "dim", "running": "bold cyan", "done": "green", "failed": "bold red", "interrupted": "yellow"}


class PanelDisplay:
    """Redraws one panel in place; notes, prints and log lines scroll above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = Spinner("line" if console.options.ascii_only else "dots", style="bold cyan")

    def start(self, view: RunView) -> None:
        self._view = view
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESH_PER_S,
            redirect_stdout=not self._console.stderr,  # stdout may be the JSON that someone reads
        )
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Draw the last state and give the terminal back, cursor and all."""
        self._live.stop()

    def stage_changed(self, stage: StageProgress) -> None:
        self._live.refresh()

    def stepped(self, stage: StageProgress) -> None:
        self._live.refresh()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _render(self) -> RenderableType:
        view = self._view
        body: list[RenderableType] = [self._stage_table()]
        stage = view.current
        if stage is not None and stage.total:
            body += [Text(), self._step_row(stage), self._metrics_row(stage)]
        return Panel(
            Group(*body),
            title=Text(f"rayward {view.run_dir.name}", style="bold"),
            title_align="left",
            subtitle=Text(f"{view.run_dir}  elapsed {clock(view.elapsed_s)}", style="dim"),
            subtitle_align="left",
            width=min(self._console.width, MAX_PANEL_COLUMNS),
            padding=(1, 2),
        )

    def _stage_table(self) -> Table:
        ascii_only = self._console.options.ascii_only
        marks: dict[str, RenderableType] = {
            "pending": Text("." if ascii_only else "\N{MIDDLE DOT}", style="dim"),
            "running": self._spinner,
            "done": Text("+" if ascii_only else "\N{CHECK MARK}", style="green"),
            "failed": Text("x" if ascii_only else "\N{BALLOT X}", style="bold red"),
            "interrupted": Text("-" if ascii_only else "\N{EN DASH}", style="yellow"),
        }
        table = Table.grid(padding=(0, 2))
        table.add_column(width=1)
        table.add_column(min_width=24)
        table.add_column(justify="right", min_width=7)
        for stage in self._view.stages.values():
            seconds = "" if stage.state == "pending" else clock(stage.seconds(self._view.now_s()))
            style = STATE_STYLES[stage.state]
            table.add_row(marks[stage.state], Text(stage.name, style=style), Text(seconds, style=style))
        return table

    def _step_row(self, stage: StageProgress) -> Table:
        eta_s = stage.eta_s(self._view.now_s())
        row = Table.grid(padding=(0, 2))
        row.add_row(
            Text(f"step {stage.current}/{stage.total}", style="bold"),
            ProgressBar(total=stage.total, completed=stage.current, width=40),
            Text("" if eta_s is None else f"eta {clock(eta_s)}"),
        )
        return row

    def _metrics_row(self, stage: StageProgress) -> Text:
        row = Text()
        for label, value in shown_metrics(stage):
            row.append(f"{label} " if label else "", style="dim")
            row.append(f"{value}   ", style="bold")
        return row
