"""`rayward config`: what a file may hold, and what each key of it means."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError
from rayward.options import SETUP, AsJson, Overrides
from rayward.output import print_json, report

KINDS = {  # of file -> what it is for
    "policy": "rayward train, with a policy-gradient method",
    "reward_model": "rayward train, with learner.algorithm=reward_model",
    "pretraining": "rayward train, with learner.algorithm=pretrain",
    "planning": "rayward train, with value_iteration or policy_iteration",
    "tabular": "rayward train, with a method that learns a table from episodes",
    "rllib": "rayward train, with one of RLlib's algorithms",
    "tokens": "rayward train, with RLlib's PPO and task.kind=tokens",
    "quickstart": "rayward quickstart",
    "serve": "rayward serve --config",
    "serve_scorer": "rayward serve-scorer --config",
}

SET_BY = {"file": "the file or an override", "preset": "the preset of its learner.algorithm", "default": "the default"}

config_app = typer.Typer(no_args_is_help=True, help="What configuration files may hold, and what it means.")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(config_app, name="config", rich_help_panel=SETUP)


def _keys_that_begin_with(incomplete: str) -> list[str]:
    from cluster.config_reference import keys_of

    keys = {found.key for schema in schemas().values() for found in keys_of(schema)}
    return sorted(key for key in keys if key.startswith(incomplete))


def _kinds_that_begin_with(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


@config_app.command("schema")
def schema(
    kind: Annotated[
        str | None, typer.Argument(help=f"{', '.join(KINDS)}; without one, list them.", autocompletion=_kinds_that_begin_with)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the JSON Schema of a kind of file, for editors that check and complete YAML."""
    from cluster.config_reference import json_schema

    if kind is None:
        report("kinds", [{"kind": name, "used_by": used_by} for name, used_by in KINDS.items()], _kinds_table, as_json=as_json)
        return
    if kind not in KINDS:
        raise ConfigError(f"{kind}: unknown kind of configuration; kinds are {', '.join(KINDS)}")
    found = json_schema(schemas()[kind])
    print_json({"schema": found} if as_json else found)  # a bare schema is what editors read


@config_app.command("explain")
def explain(
    key: Annotated[str, typer.Argument(help="A key such as learner.kl.coef.", autocompletion=_keys_that_begin_with)],
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="Also show what this file of a run sets the key to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Explain one key: meaning, type, allowed values, default, and where the code defines it."""
    from dataclasses import asdict

    from cluster.config_reference import find_keys
    from learners.settings.presets import preset_values
    from learners.settings.setting import setting_in

    if overrides and config is None:
        raise ConfigError(f"{overrides[0]}: an override changes a file; name the file with --config")
    meanings = [
        {**asdict(found), "kinds": kinds, "presets": preset_values(found.key.partition("learner.")[2])}
        for kinds, found in find_keys(schemas(), key)
    ]
    setting = None if config is None else asdict(setting_in(config, overrides or [], key))
    report("key", {"name": key, "meanings": meanings, "setting": setting}, _explanation, as_json=as_json)


def schemas() -> dict[str, Any]:
    """The record of each kind of file."""
    from learners.settings.run import (
        PlanningRunConfig,
        PolicyRunConfig,
        PretrainingRunConfig,
        QuickstartConfig,
        RewardModelRunConfig,
        RLlibRunConfig,
        TabularRunConfig,
        TokenRunConfig,
    )
    from serving.config import ServeConfig
    from serving.scorer.config import ServeScorerConfig

    of_environments = (PlanningRunConfig, TabularRunConfig, RLlibRunConfig, TokenRunConfig)
    of_models = (PolicyRunConfig, RewardModelRunConfig, PretrainingRunConfig)
    records = (*of_models, *of_environments, QuickstartConfig, ServeConfig, ServeScorerConfig)
    return dict(zip(KINDS, records, strict=True))


def _kinds_table(kinds: list[dict[str, str]]) -> Any:
    from rich.table import Table

    table = Table("kind", "used by")
    for kind in kinds:
        table.add_row(kind["kind"], kind["used_by"])
    return table


def _explanation(key: dict[str, Any]) -> Any:
    """A line a fact; facts that a key has not are left out."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for meaning in key["meanings"]:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        for name, fact in _facts(meaning):
            facts.add_row(name, Text(fact))
        parts += [Text(meaning["key"], style="bold"), Text(meaning["meaning"]), facts, ""]
    setting = key["setting"]
    if setting is not None:
        parts += [Text(f"{setting['file']}: {_plain(setting['value'])}, set by {SET_BY[setting['set_by']]}"), ""]
    return Group(*parts[:-1])


def _facts(meaning: dict[str, Any]) -> list[tuple[str, str]]:
    default = "none: it must be given" if meaning["is_required"] else _plain(meaning["default"])
    facts = (
        ("type", ", ".join(filter(None, [meaning["type"], meaning["limits"]]))),
        ("values", ", ".join(map(_plain, meaning["allowed"]))),
        ("default", "" if meaning["keys"] else default),
        ("presets", ", ".join(f"{_plain(value)} ({name})" for name, value in meaning["presets"].items())),
        ("keys", ", ".join(name.rpartition(".")[2] for name in meaning["keys"])),
        ("only with", " or ".join(meaning["when"])),
        ("files", ", ".join(meaning["kinds"])),
        ("defined in", f"{meaning['section']}, {meaning['defined_in'].replace('.', '/')}.py"),
    )
    return [(name, fact) for name, fact in facts if fact]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
