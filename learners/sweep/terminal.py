"""A sweep on a terminal: its trials as a table, the best first, and the command line of the best."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import load_config
from cluster.display.printable import printable
from cluster.display.progress import clock
from cluster.storage.run_directory import CONFIG_NAME, find_run, read_summary
from learners.report.terminal import STATE_STYLE
from learners.settings.sweep import SweepConfig
from learners.sweep.record import SweepRecord, Trial, best_first, best_of
from learners.sweep.space import overrides_of

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_OF_THE_BEST = (("best     ", "run"), ("again    ", "command"))
TRIAL_STYLE = {**STATE_STYLE, "stopped": "blue", "pending": "dim"}


def sweep_report(sweep: Path) -> dict[str, Any]:
    """Its state, its trials from the best to the worst, and the best one with the command that repeats it; also in progress."""
    folder = find_run(sweep)
    record, summary = SweepRecord.read(folder), read_summary(folder)
    config = load_config(SweepConfig, folder / CONFIG_NAME)
    best = best_of(record)
    return {
        "name": folder.name,
        "path": str(folder),
        "state": summary["state"],
        "error": summary.get("error"),
        "metric": record.metric,
        "mode": record.mode,
        "trials": [asdict(trial) for trial in best_first(record.trials, record.mode)],
        "best": None if best is None else _best(folder, config, best),
    }


def _best(folder: Path, config: SweepConfig, best: Trial) -> dict[str, Any]:
    return {
        "trial": best.name,
        "value": best.value,
        "run": str(folder / best.name),
        "command": best_command(config, best),
    }


def best_command(config: SweepConfig, trial: Trial) -> str:
    """What runs the trial's settings again, as a run beside the sweep."""
    return shlex.join(["rayward", "train", config.source, *config.overrides, *overrides_of(trial.settings)])


def sweep_view(report: dict[str, Any]) -> "RenderableType":
    """The report for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    settings = list(report["trials"][0]["settings"]) if report["trials"] else []
    table = Table("trial", "state", *_short(settings), report["metric"], "step", "time")
    for column in table.columns[2:]:
        column.justify = "right"
    for trial in report["trials"]:
        value = "" if trial["value"] is None else f"{trial['value']:.4g}"
        step = "" if trial["step"] is None else str(trial["step"])
        values = [printable(text) for text in trial["settings"].values()]
        state = Text(trial["state"], style=TRIAL_STYLE[trial["state"]])
        table.add_row(trial["name"], state, *map(Text, values), value, step, clock(trial["seconds"]))
    header = Text.assemble((report["name"], "bold"), "  ", (report["state"], STATE_STYLE[report["state"]]))
    errors = [Text(printable(f"{trial['name']}: {trial['error']}"), "bold red") for trial in report["trials"] if trial["error"]]
    picture = Path(report["path"]) / "report.png"
    shown = [Text.assemble(("picture  ", "bold"), str(picture))] if picture.is_file() else []
    found = report["best"]
    best = [] if found is None else [Text.assemble((name, "bold"), found[key]) for name, key in SHOWN_OF_THE_BEST]
    return Group(header, table, *errors, *shown, *best)


def _short(settings: list[str]) -> list[str]:
    """The last part of each name, or all of it where two end alike: the command line below the table has the whole."""
    last = [name.rpartition(".")[2] for name in settings]
    return [name if last.count(end) > 1 else end for name, end in zip(settings, last, strict=True)]
