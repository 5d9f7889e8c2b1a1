"""Commands around a served policy."""

from pathlib import Path
from typing import Annotated

import typer

from rayward.options import CONFIGS, SERVING, Overrides


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(rich_help_panel=SERVING)(serve)
    app.command(rich_help_panel=SERVING)(serve_scorer)


def serve(
    policy: Annotated[Path, typer.Argument(help="A policy folder, or a run directory: then its newest policy.")],
    overrides: Overrides = None,
    config: Annotated[Path, typer.Option(help="Settings of the endpoint.")] = CONFIGS / "serve" / "default.yaml",
    port: Annotated[int | None, typer.Option(help="Port on loopback; 0 picks a free one.")] = None,
) -> None:
    """Serve a policy through an OpenAI-compatible endpoint on this machine."""
    from cluster.config import load_config
    from serving.config import ServeConfig

    given = [f"model={policy}", *([] if port is None else [f"port={port}"]), *(overrides or [])]
    loaded = load_config(ServeConfig, config, given)

    from serving.app import serve_until_interrupted  # seconds: a mistake in the configuration is told before it

    serve_until_interrupted(loaded)


def serve_scorer(
    model: Annotated[Path, typer.Argument(help="A reward model's folder, or a run directory: then the one that it trained.")],
    overrides: Overrides = None,
    config: Annotated[Path, typer.Option(help="Settings of the scorer.")] = CONFIGS / "serve" / "scorer.yaml",
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
) -> None:
    """Serve a reward model to runs, as a scorer of kind http."""
    from cluster.config import load_config
    from serving.scorer.config import ServeScorerConfig

    given = [f"scorer.model={model}", *([] if port is None else [f"port={port}"]), *(overrides or [])]
    loaded = load_config(ServeScorerConfig, config, given)

    from serving.scorer.server import serve_scorer_until_interrupted  # seconds: a mistake in the configuration is told first

    serve_scorer_until_interrupted(loaded)
