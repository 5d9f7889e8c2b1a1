"""The display that fits a console."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.display.lines import LineDisplay
from cluster.display.panel import PanelDisplay
from cluster.display.progress import RunView


def build_view(stages: Sequence[str], run_dir: Path, console: Console) -> RunView:
    """A live panel where `console` is a terminal, plain lines in pipes and under CI.

    With --json the caller passes a console on stderr, and stdout stays untouched.
    """
    if console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI"):
        return RunView(stages, run_dir, PanelDisplay(console))
    return RunView(stages, run_dir, LineDisplay(console))
