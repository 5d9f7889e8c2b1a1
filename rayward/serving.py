"""Commands around a served policy."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.errors import ConfigError
from rayward.options import CONFIGS, SERVING, Overrides

if TYPE_CHECKING:
    from learners.run.language_model.own_model import OwnModel
    from serving.chat.client import PolicyClient


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (serve, chat, serve_scorer):
        app.command(rich_help_panel=SERVING)(command)


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


def chat(
    url: Annotated[
        str,
        typer.Argument(
            help="The endpoint; its key, if it asks for one, is in RAYWARD_API_KEY. Or the folder of a small language model of "
            "your own, which is sampled here.",
        ),
    ] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Name of the served policy; the first one if not given.")] = "",
    system: Annotated[str, typer.Option(help="System message of the conversation.")] = "",
    scorer: Annotated[
        Path | None, typer.Option(help="Reward model for /score: its folder on this machine, or the run that trained it.")
    ] = None,
    prompt_format: Annotated[
        Literal["chat", "plain"], typer.Option(help="plain: continue each line, as a policy without chat template does.")
    ] = "chat",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
) -> None:
    """Talk to a served policy in the terminal. Type /help there for its commands."""
    from serving.chat.conversation import Conversation
    from serving.chat.judge import Judge

    if system and prompt_format == "plain":
        raise ConfigError("--system: a plain text has no system message; leave it out, or use --prompt-format chat")
    judge = None if scorer is None else Judge(scorer, prompt_format)
    client = _answerer(url, model, prompt_format, max_tokens=max_tokens, temperature=temperature)
    conversation = Conversation(client, _write, prompt_format=prompt_format, system=system, judge=judge)
    conversation.run(_lines())


def _answerer(
    url: str, model: str, prompt_format: str, *, max_tokens: int, temperature: float | None
) -> "OwnModel | PolicyClient":
    """Says whom one talks to."""
    from serving.chat.client import KEY_VARIABLE, PolicyClient

    hints = "/help lists commands, Ctrl-D ends."
    if not Path(url).is_dir():
        key = os.environ.get(KEY_VARIABLE, "")
        client = PolicyClient(url, key=key, model=model, max_tokens=max_tokens, temperature=temperature)
        typer.echo(f"{client.model} at {client.url}. {hints}", err=True)
        return client
    if prompt_format == "chat":
        raise ConfigError(f"{url}: a small model of one's own continues texts and knows no chats; add --prompt-format plain")
    from learners.run.language_model.own_model import OwnModel  # torch: seconds

    own = OwnModel(Path(url), max_tokens=max_tokens, temperature=1.0 if temperature is None else temperature)
    typer.echo(f"{own.model} in {url}. {hints}", err=True)
    return own


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _lines() -> Iterator[str]:
    """Typed with a prompt, line editing and the arrow keys in a terminal; read as they are from a pipe."""
    from serving.chat.conversation import typed_lines

    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 - its import gives `input` an editor

    yield from typed_lines(lambda: input("you> "), lambda: typer.echo("\nCtrl-D ends the conversation"))
    typer.echo()  # after Ctrl-D the cursor is behind the prompt
