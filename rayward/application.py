"""The typer application and its end: every error becomes one clear message and the exit code of its kind.

Heavy imports happen inside commands, so `rayward --help` answers at once.
"""

import logging
import sys
from typing import Annotated

import typer

from cluster.errors import RaywardError
from rayward import jobs, keys, machine, results, serving, settings, sources, training
from rayward.output import explain, set_up_log

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 bad usage or configuration, found before Ray starts; 3 a run cannot be resumed safely; "
    "4 the run directory is in use; 130 interrupted."
)

logger = logging.getLogger("rayward")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align a language model with reinforcement learning on Ray, and serve the result.",
    epilog=EXIT_CODES,
)
for commands in (training, jobs, results, serving, keys, settings, sources, machine):  # a file of commands is one entry here
    commands.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"rayward {version('rayward')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also show debug lines, library logs and the traceback of an error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results, warnings and errors only: no progress.")] = False,
) -> None:
    """Options of every command stand before it: `rayward -q train CONFIG`."""
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    set_up_log(verbose=verbose, quiet=quiet)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="rayward")  # also under `python -m`, so that help and completion name one program
    except RaywardError as error:
        _end(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, its traceback is kept in a file
        from cluster.host.crash_report import unexpected

        _end(unexpected(error))


def _end(error: RaywardError) -> None:
    logger.debug("the traceback:", exc_info=error)
    explain(error, as_json="--json" in sys.argv[1:])
    sys.exit(error.exit_code)
