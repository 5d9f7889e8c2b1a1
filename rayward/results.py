"""Commands that show what runs have done."""

from pathlib import Path
from typing import Annotated

import typer

from rayward.options import RESULTS, AsJson, Run
from rayward.output import report


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (runs, show):
        app.command(rich_help_panel=RESULTS)(command)


def runs(
    runs_dir: Annotated[Path, typer.Option(help="Folder of run directories.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List runs with their state and result."""
    from learners.report.terminal import list_runs, runs_table

    report("runs", list_runs(runs_dir), runs_table, as_json=as_json)


def show(
    run: Run,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Recompute what was trained on, and check that each trajectory counts once.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: before and after, curves, sample completions; or the trials of a sweep."""
    from cluster.storage.run_directory import find_run
    from learners.report.terminal import audit_of, audit_view, run_view, summary_of
    from learners.sweep.record import is_sweep

    if is_sweep(find_run(run)):
        from learners.sweep.terminal import sweep_report, sweep_view

        report("sweep", sweep_report(run), sweep_view, as_json=as_json)
        return
    if ledger:
        audit = audit_of(run)
        report("ledger", audit, audit_view, as_json=as_json)
        raise typer.Exit(1 if audit["problems"] else 0)
    report("run", summary_of(run), lambda _: run_view(run), as_json=as_json)
