"""Commands for the keys of an endpoint's clients."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rayward.options import SERVING, AsJson
from rayward.output import print_json, report

keys_app = typer.Typer(no_args_is_help=True, help="Keys of an endpoint's clients.")

Name = Annotated[str, typer.Argument(help="Whose key it is; the log names it so.")]
KeyPath = Annotated[
    Path | None, typer.Option("--file", help="The file of keys; the default is rayward/keys.json in ~/.config.", dir_okay=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(keys_app, name="keys", rich_help_panel=SERVING)


@keys_app.command("add")
def add(
    name: Name,
    scope: Annotated[list[str] | None, typer.Option(help="inference or feedback; may be given twice. Default: both.")] = None,
    file: KeyPath = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: the file has its hash only."""
    from serving.guard.keys.key_file import SCOPES, add_key

    path = _path(file)
    key = add_key(path, name, scope or SCOPES)
    if as_json:
        print_json({"key": {"name": name, "key": key, "path": str(path)}})
    else:
        typer.echo(key)  # alone, for `KEY=$(rayward keys add NAME)`
        typer.echo(f"{name} is in {path}; endpoints that use it take the key from now on. It is not shown again.", err=True)


@keys_app.command("list")
def list_keys(file: KeyPath = None, as_json: AsJson = False) -> None:
    """List names, scopes and ages of keys. The keys themselves are not kept."""
    from serving.guard.keys.key_file import read_keys

    keys = [{"name": key.name, "scopes": list(key.scopes), "created_s": key.created_s} for key in read_keys(_path(file))]
    report("keys", keys, _table, as_json=as_json)


@keys_app.command("revoke")
def revoke(name: Name, file: KeyPath = None, as_json: AsJson = False) -> None:
    """Forget a key. Endpoints refuse it from their next request on."""
    from serving.guard.keys.key_file import revoke_key

    path = _path(file)
    revoke_key(path, name)
    if as_json:
        print_json({"key": {"name": name, "path": str(path)}})
    else:
        typer.echo(f"{name} is revoked in {path}.", err=True)


def _path(file: Path | None) -> Path:
    from serving.guard.keys.key_file import default_key_file

    return default_key_file() if file is None else file.expanduser().resolve()


def _table(keys: list[dict[str, Any]]) -> Any:
    from datetime import UTC, datetime

    from rich.table import Table

    table = Table("name", "for", "made")
    for key in keys:
        table.add_row(
            key["name"], ", ".join(key["scopes"]), datetime.fromtimestamp(key["created_s"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        )
    return table
