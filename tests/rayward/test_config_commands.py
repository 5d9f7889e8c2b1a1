"""`rayward config`: schemas that accept the shipped files, and a meaning for every key."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from cluster.config_reference import keys_of
from cluster.errors import ConfigError
from rayward import app
from rayward.settings import KINDS, schemas

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    "policy": [*sorted((CONFIGS / "train").glob("*_arithmetic.yaml")), CONFIGS / "train" / "tiny.yaml"],
    "reward_model": [CONFIGS / "train" / "reward_model_movie_reviews.yaml"],
    "quickstart": sorted(CONFIGS.glob("quickstart*.yaml")),
}


def output_of(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_has_a_meaning(kind: str) -> None:
    assert {f"{found.section}.{found.key}" for found in keys_of(schemas()[kind]) if not found.meaning} == set()


@pytest.mark.parametrize("kind", FILES)
def test_the_schema_accepts_the_shipped_files_and_refuses_a_typing_error(kind: str) -> None:
    schema = json.loads(output_of("config", "schema", kind))
    assert json.loads(output_of("config", "schema", kind, "--json")) == {"schema": schema}
    validator = Draft202012Validator(schema)
    for path in FILES[kind]:
        values = yaml.safe_load(path.read_text())
        assert list(validator.iter_errors(values)) == []
        assert [error.validator for error in validator.iter_errors({**values, "seeed": 1})] == ["additionalProperties"]


def test_the_kinds_are_listed() -> None:
    listed = json.loads(output_of("config", "schema", "--json"))["kinds"]
    assert [kind["kind"] for kind in listed] == list(KINDS)
    assert all(kind in output_of("config", "schema") for kind in KINDS)


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="police: unknown kind of configuration; kinds are policy, reward_model"):
        output_of("config", "schema", "police")


def test_a_key_is_explained() -> None:
    text = output_of("config", "explain", "learner.kl.coef")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "learner.kl.coef",
        "Score points a nat; 0 is off.",
        "type number, at least 0",
        "default 0.05",
        "presets 0.04 (grpo), 0.0 (dr_grpo), 0.0 (dapo), 0.0 (gspo), 0.0 (cispo)",
        "files policy",
        "defined in KLConfig, learners/settings/policy.py",
    ]


def test_a_key_is_explained_with_its_value_in_a_file() -> None:
    path = CONFIGS / "train" / "grpo_arithmetic.yaml"
    text = output_of("config", "explain", "learner.kl.coef", "--config", str(path))
    assert text.splitlines()[-1] == f"{path}: 0.04, set by the preset of its learner.algorithm"
    told = json.loads(output_of("config", "explain", "learner.kl.coef", "seed=3", "--config", str(path), "--json"))["key"]
    assert told["setting"] == {"file": str(path), "value": 0.04, "set_by": "preset"}
    assert told["meanings"][0]["section"] == "KLConfig"


def test_an_override_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="name the file with --config"):
        output_of("config", "explain", "seed", "seed=3")


@pytest.mark.parametrize(("verb", "kind", "name"), [("models", "models", "tiny"), ("data", "data_sets", "movie-reviews")])
def test_sources_are_listed_without_fetching(
    verb: str, kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path))
    sources = {source["name"]: source for source in json.loads(output_of(verb, "list", "--json"))[kind]}
    assert (sources[name]["is_fetched"], sources[name]["path"], sources[name]["bytes"]) == (False, None, None)
    assert "not fetched yet" in output_of(verb, "list")
    assert list(tmp_path.iterdir()) == []
