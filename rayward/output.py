"""What a command prints: tables for people, one JSON object for programs, and one line for each problem."""

import json
import logging
import sys
from typing import Any

import typer

from cluster.errors import ConfigError, RaywardError

PACKAGES = ("rayward", "cluster", "actors", "learners", "serving")  # the loggers of ours


def print_json(value: dict[str, Any]) -> None:
    """One object with one key, which says what it holds: `run`, `runs`, `plan`, ..., or `error`."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True))


def print_table(table: Any) -> None:
    """Anything that rich can draw, on standard output."""
    from rich.console import Console

    Console().print(table)


def report(kind: str, value: Any, table: Any, *, as_json: bool) -> None:
    """`value` under the key `kind` as JSON, or what `table(value)` draws."""
    if as_json:
        print_json({kind: value})
    else:
        print_table(table(value))


def set_up_log(*, verbose: bool, quiet: bool) -> None:
    """Log lines go to standard error. Others read the level of the logger `rayward`: DEBUG is verbose, WARNING is quiet."""
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    if not verbose:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
    if verbose or quiet:
        for name in PACKAGES:
            logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.WARNING)


def explain(error: RaywardError, *, as_json: bool) -> None:
    """Each problem on a line of standard error; with `as_json` also one object on standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    for line in str(error).splitlines():
        console.print(Text.assemble(("error: ", "bold red"), line))
    if as_json:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        print_json({"error": {"kind": type(error).__name__, "problems": problems, "exit_code": error.exit_code}})
