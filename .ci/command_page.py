"""Reference of the command line, from the typer application: usage, arguments, options and their help."""

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from rayward import app

EXIT_CODES = """## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | bad usage, configuration or data, found before Ray starts |
| 3 | the run cannot be resumed safely |
| 4 | another process owns the run directory |
| 130 | interrupted by Ctrl-C or SIGTERM |
"""


def command_page() -> str:
    """Markdown."""
    root = typer.main.get_command(app)
    sections = [f"{_section(name, command)}" for name, command in _commands(root, "rayward")]
    introduction = "Every command of `rayward`, with its arguments and options. `rayward COMMAND --help` prints the same."
    return "\n".join([f"# Commands\n\n{introduction}\n", *sections, EXIT_CODES])


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(command, TyperGroup):
        yield name, command
        return
    if command.params:
        yield name, command
    for each, inner in command.commands.items():
        yield from _commands(inner, f"{name} {each}")


def _section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join([name, *(_argument(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [f"| `{_argument(each)}` | {_cell(each.help)} |" for each in arguments]
    rows += [f"| `{', '.join(each.opts)}` | {_cell(each.help)}{_default(each)} |" for each in options]
    table = "\n".join(["| argument or option | meaning |", "|---|---|", *rows])
    return f"## {name}\n\n{_cell(command.help)}\n\n```text\n{usage}\n```\n\n{table}\n"


def _argument(parameter: Any) -> str:
    shown = parameter.metavar or parameter.name.upper()
    return shown if parameter.required or shown.startswith("[") else f"[{shown}]"


def _default(parameter: Any) -> str:
    """Flags and paths into the installation have defaults that say nothing to a reader."""
    value = parameter.default
    is_said = value not in (None, "") and not parameter.is_flag and not str(value).startswith("/")
    return f" Default: `{value}`." if is_said else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
