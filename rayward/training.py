"""Commands that train policies, and `rayward plan`."""

from typing import Annotated, Any, Literal

import typer

from rayward.options import CONFIGS, TRAINING, AsJson, ConfigPath, Overrides, Run
from rayward.output import report


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (quickstart, train, sweep, resume, scale, plan):
        app.command(rich_help_panel=TRAINING)(command)


def quickstart(
    overrides: Overrides = None,
    small: Annotated[bool, typer.Option("--small", help="A tiny random model: every part in three minutes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a reward model on people's ratings, align a model against it, and compare before and after."""
    from cluster.config import load_config
    from learners.settings.run import QuickstartConfig

    config = load_config(QuickstartConfig, CONFIGS / ("quickstart_small.yaml" if small else "quickstart.yaml"), overrides or [])
    _check_can_start(config.policy_run())

    from learners.run.commands import run_quickstart  # seconds: a mistake in the configuration is told before it

    _report_run(run_quickstart(config), as_json=as_json)


def train(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train a language model, or a table in a Gymnasium environment: `learner.algorithm` says how."""
    from learners.settings.run import load_run_config

    loaded = load_run_config(config, overrides or [])
    _check_can_start(loaded)

    from learners.run.commands import run_training  # seconds: a mistake in the configuration is told before it

    _report_run(run_training(loaded), as_json=as_json)


def sweep(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    grid: Annotated[
        list[str] | None, typer.Option(help="A setting and its values, a.b=1,2,3; once for each. Every combination is tried.")
    ] = None,
    sample: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting and its distribution, c.d=loguniform(1e-6,1e-4); once for each. Others are uniform, randint, "
            "lograndint, and choice(A,B,...)."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Draws at each point of the grid. With --search optuna: all trials.")
    ] = None,
    search: Annotated[Literal["random", "optuna"], typer.Option(help="optuna: trials so far say where to look next.")] = "random",
    scheduler: Annotated[Literal["none", "asha"], typer.Option(help="asha: trials that fall behind are stopped.")] = "none",
    grace_steps: Annotated[int | None, typer.Option(min=1, help="ASHA stops no trial before this step.")] = None,
    reduction_factor: Annotated[
        int | None, typer.Option(min=2, help="ASHA lets the best one of so many go on. Default: 4.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What compares trials. Default: the evaluation after training; with ASHA, its curve."),
    ] = None,
    mode: Annotated[Literal["max", "min"], typer.Option(help="Whether more of the metric is better.")] = "max",
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at once at most. Default: as many as fit.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the sweep's directory. Default: the configuration's, with -sweep.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train one configuration many times with different settings, and compare the results. Each trial is a run of its own."""
    from learners.sweep.loading import load_sweep

    given = {"num_samples": samples, "metric": metric, "concurrent": concurrent, "name": name}
    given |= {"grace_steps": grace_steps, "reduction_factor": reduction_factor}
    options = {key: value for key, value in given.items() if value is not None}
    options |= {"search": search, "scheduler": scheduler, "mode": mode}
    checked = load_sweep(config, overrides or [], grid or [], sample or [], options)
    _check_fits(checked.config, checked.requests)

    from learners.sweep.command import run_sweep  # seconds: a mistake in the configuration is told before it

    _report_sweep(run_sweep(checked), as_json=as_json)


def resume(
    run: Run,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again from step 0, and set aside what the run has made.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a run or a sweep that was interrupted, killed or failed: a run from its newest intact checkpoint."""
    from cluster.storage.run_directory import find_run
    from learners.sweep.record import is_sweep

    if is_sweep(find_run(run)):
        from learners.sweep.command import resume_sweep

        _report_sweep(resume_sweep(run, overrides or [], fresh=fresh), as_json=as_json)
        return
    from learners.run.commands import resume_run

    _report_run(resume_run(run, overrides or [], fresh=fresh), as_json=as_json)


def scale(
    run: Run,
    numbers: Annotated[list[str], typer.Argument(help="generators=6, scorers.NAME=2", metavar="ROLE=N")],
    as_json: AsJson = False,
) -> None:
    """Change how many generators or scorers a living run has, up to their max_replicas, from its next step on."""
    from learners.run.sizing.scale_request import request_scale

    report("scale", request_scale(run, numbers), _numbers, as_json=as_json)


def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    node: Annotated[
        list[str] | None,
        typer.Option(help="CPUs and GPUs of one node of a cluster, as 16,4; once for each. Default: this machine."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the placement, memory and batch sizes of a run before anything starts, on this machine or node by node."""
    from learners.run.plan import parse_nodes, plan_run, plan_table
    from learners.settings.run import load_run_config

    planned = plan_run(load_run_config(config, overrides or []), parse_nodes(node or []))
    report("plan", planned, plan_table, as_json=as_json)


def _check_can_start(config: Any) -> None:
    from learners.run.plan import role_requests

    _check_fits(config, role_requests(config))


def _check_fits(config: Any, requests: Any) -> None:
    """Refuse, before anything large is imported for it, a run whose directory is in use or that this machine cannot hold."""
    from cluster.processes.placement import check_placement, cluster_address, this_machine
    from cluster.storage.run_directory import check_not_in_use

    check_not_in_use(config.runs_dir, config.name)
    if requests and cluster_address() is None:  # without requests a run looks for no cluster
        check_placement(requests, this_machine())


def _numbers(numbers: dict[str, int]) -> str:
    return "wanted from the next step on: " + ", ".join(f"{name}={number}" for name, number in numbers.items())


def _report_run(run: Any, *, as_json: bool) -> None:
    from learners.report.terminal import run_view, summary_of

    report("run", summary_of(run), lambda _: run_view(run), as_json=as_json)


def _report_sweep(folder: Any, *, as_json: bool) -> None:
    from learners.sweep.terminal import sweep_report, sweep_view

    report("sweep", sweep_report(folder), sweep_view, as_json=as_json)
