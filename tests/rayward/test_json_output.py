"""`--json`: one object with one key, for each command; the README says which."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import rayward
from learners.run import commands

README = Path(rayward.__file__).with_name("README.md")
CONFIG = Path(rayward.__file__).parents[1] / "configs" / "train" / "tiny.yaml"
WITHOUT_JSON = {"serve", "chat", "serve-scorer"}  # they report nothing and end with Ctrl-C


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with nothing in it but its end."""
    folder = tmp_path / "runs" / "night"
    (folder / "trajectories").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"state": "completed"}))
    return folder


def output_of(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(rayward.app, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)  # one object and nothing else, or this raises


def documented() -> dict[str, str]:
    """command -> key, as the README has it."""
    section = README.read_text().partition("\n## JSON\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*`) \| `(\w+)` \|", section, re.MULTILINE)
    return {command: key for names, key in rows for command in re.findall(r"`([^`]+)`", names)}


def commands_of(app: typer.Typer, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(name, whether it takes --json) of every command, those of groups too."""
    root = typer.main.get_command(app)
    pending = [("", root)]
    while pending:
        name, command = pending.pop()
        inner = getattr(command, "commands", {})
        pending += [(f"{name} {word}".strip(), child) for word, child in inner.items()]
        if not inner:
            yield name, any("--json" in parameter.opts for parameter in command.params)


def test_every_command_that_reports_takes_json_and_is_documented() -> None:
    takes_json = dict(commands_of(rayward.app))
    assert {name for name, takes in takes_json.items() if not takes} == WITHOUT_JSON
    assert {command for command in documented() if " --" not in command} == set(takes_json) - WITHOUT_JSON


@pytest.mark.parametrize(
    "command",
    ["runs", "plan CONFIG", "doctor", "models list", "models fetch tiny", "data list", "config schema", "config explain seed"],
)
def test_the_one_key_says_what_the_object_holds(command: str) -> None:
    name = " ".join(word for word in command.split() if word not in ("CONFIG", "tiny", "seed"))
    assert list(output_of(*command.replace("CONFIG", str(CONFIG)).split())) == [documented()[name]]


def test_a_run_and_its_ledger(run: Path) -> None:
    assert output_of("show", str(run)) == {documented()["show"]: {"state": "completed", "path": str(run)}}
    assert list(output_of("show", str(run), "--ledger")) == [documented()["show --ledger"]]


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (["quickstart", "--small"], "run_quickstart"),
        (["train", str(CONFIG)], "run_training"),
        (["resume", "night"], "resume_run"),
    ],
)
def test_what_trains_reports_its_run(run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], function: str) -> None:
    monkeypatch.chdir(run.parents[1])
    monkeypatch.setattr(commands, function, lambda *_, **__: run)  # the e2e tests train
    assert output_of(*arguments) == {documented()[arguments[0]]: {"state": "completed", "path": str(run)}}


def test_a_fetched_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.sources import movie_reviews

    monkeypatch.setattr(movie_reviews, "fetch_movie_reviews", lambda: tmp_path)
    assert output_of("data", "fetch", "movie-reviews") == {"data_set": {"name": "movie-reviews", "path": str(tmp_path)}}
    assert documented()["data fetch"] == "data_set"
