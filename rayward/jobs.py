"""`rayward submit`: a run as a job on a Ray cluster."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rayward.options import TRAINING, AsJson, Overrides
from rayward.output import report

logger = logging.getLogger("rayward")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(rich_help_panel=TRAINING)(submit)


def submit(
    target: Annotated[Path, typer.Argument(help="A YAML file, as for `train`; with --resume, a run directory on the cluster.")],
    overrides: Overrides = None,
    *,
    address: Annotated[
        str, typer.Option(help="URL of Ray's dashboard, such as http://127.0.0.1:8265.", envvar="RAY_API_SERVER_ADDRESS")
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run at TARGET.")] = False,
    working_dir: Annotated[
        Path, typer.Option(help="Folder to upload; its .git, .venv and runs stay here.", exists=True, file_okay=False)
    ] = Path("."),
    python: Annotated[str, typer.Option(help="The cluster's Python that has Rayward's dependencies.")] = "python",
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; do not follow the log.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a configuration as a job on a Ray cluster and follow its log. Ctrl-C stops the job cleanly."""
    from learners.run.job_command import resume_command, training_command

    given = overrides or []
    command = resume_command(target, given) if resume else training_command(target, given, working_dir=working_dir)

    from dataclasses import asdict

    from cluster.processes.jobs import connect_to_jobs, submit_job

    if command.variables:
        logger.warning("the cluster must have set %s, which scorers read; they are not sent", ", ".join(command.variables))
    if not (working_dir / "rayward").is_dir():
        logger.info("%s does not hold Rayward itself, so the cluster's Python must have it installed", working_dir.resolve())
    client = connect_to_jobs(address)
    arguments = [python, "-m", "rayward", *command.arguments]
    job = submit_job(client, arguments, name=command.name, working_dir=working_dir)
    logger.info("submitted %s to %s", job.job_id, address)
    ended = job.report() if detach else job.follow(sys.stderr.write if as_json else sys.stdout.write)
    report("job", asdict(ended), _table, as_json=as_json)


def _table(job: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in job.items():
        if value:
            table.add_row(name.replace("_", " "), value)
    return table
