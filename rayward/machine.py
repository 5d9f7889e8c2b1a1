"""`rayward doctor`."""

import typer

from rayward.options import SETUP, AsJson
from rayward.output import report


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(rich_help_panel=SETUP)(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check versions, devices and memory, and say how to fix what is missing."""
    from cluster.host.doctor import diagnose, diagnosis_table

    findings = diagnose()
    report("findings", findings, diagnosis_table, as_json=as_json)
    if any(finding["state"] == "missing" for finding in findings):
        raise typer.Exit(1)
