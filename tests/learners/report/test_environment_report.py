"""The report of a run in an environment: its sentence, its table, its episodes and its map, from files only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import DataError
from learners.evaluation.returns import BEFORE, EnvironmentEvaluation, Grid, ShownEpisode, read_evaluation, write_evaluation
from learners.report.data import load_report_data
from learners.report.environment_page import environment_headline, environment_rows, share_of_optimum, shown_episodes
from learners.report.figure import _panels
from learners.report.page import draw_figures, write_report

RED, PLAIN = "\x1b[41m", "\x1b[0m"
MAP = Grid(cells=(("S", "G"),), values=((0.5, 0.0),), arrows=(("right", ""),))


def evaluation(return_mean: float, **others: Any) -> EnvironmentEvaluation:
    episode = ShownEpisode(frames=(f"{RED}S{PLAIN}G\x07",), num_steps=3, total=1.0, is_cut=False)
    values: dict[str, Any] = {"is_discounted": True, "return_mean": return_mean, "return_std": None, "optimal_return": 0.8}
    values |= {"num_episodes": 0, "episode": episode, "grid": MAP}
    return EnvironmentEvaluation(**values | others)


def write_run(path: Path, *, before: EnvironmentEvaluation, after: EnvironmentEvaluation | None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "summary.json").write_text(json.dumps({"state": "completed", "name": "lake"}))
    (path / "config.yaml").write_text(
        yaml.safe_dump({"name": "lake", "task": {"kind": "gymnasium", "env": "Lake-v0"}, "evaluation": {"num_episodes": 7}})
    )
    lines = [
        {
            "step": step,
            "episode/discounted_return_mean": step / 10,
            "episode/discounted_return_std": 0.1,
            "episode/return_mean": step / 9,
            "episode/length_mean": 4.0,
        }
        for step in range(1, 6)
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_evaluation(path / BEFORE, before)
    if after is not None:
        write_evaluation(path / BEFORE.with_name("after.json"), after)
    return path


def test_an_evaluation_comes_back_from_its_file(tmp_path: Path) -> None:
    found = evaluation(0.5)
    write_evaluation(tmp_path / "x" / "before.json", found)
    assert read_evaluation(tmp_path / "x" / "before.json") == found
    assert read_evaluation(tmp_path / "none.json") is None


def test_a_film_lies_beside_it_and_is_in_the_page(tmp_path: Path) -> None:
    found = evaluation(0.5)
    assert found.episode is not None
    filmed = replace(found, episode=replace(found.episode, frames=(), film=b"GIF89a film"))
    run = write_run(tmp_path / "run", before=filmed, after=filmed)
    assert read_evaluation(run / BEFORE) == filmed
    assert (run / BEFORE).with_suffix(".gif").read_bytes() == b"GIF89a film"
    assert write_report(run, draw_figures(run)).read_text().count("data:image/gif;base64,R0lGODlhIGZpbG0=") == 2


@pytest.mark.parametrize("text", ["[1]", "{", '{"episode": null}', '{"episode": null, "grid": null, "other": 1}'])
def test_a_broken_evaluation_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "before.json").write_text(text)
    with pytest.raises(DataError, match=r"before\.json: not an evaluation in an environment"):
        read_evaluation(tmp_path / "before.json")


def test_the_sentence_and_the_table_compare_with_the_optimum(tmp_path: Path) -> None:
    data = load_report_data(write_run(tmp_path, before=evaluation(0.0), after=evaluation(0.6)))
    assert environment_headline(data) == (
        "In Lake-v0 the expected discounted return went from 0 to 0.6 (exact); the optimum is 0.8, of which that is 75.0%."
    )
    assert [(row.label, row.before, row.after, row.change) for row in environment_rows(data)] == [
        ("Discounted return", "0", "0.6", "+0.6"),
        ("Optimum", "0.8", "0.8", ""),
        ("Return of the episode below", "1", "1", "+0"),
        ("Its steps", "3", "3", "+0"),
    ]


def test_without_a_model_there_is_no_optimum(tmp_path: Path) -> None:
    sampled = {"optimal_return": None, "return_std": 0.25, "num_episodes": 7, "grid": None, "episode": None}
    data = load_report_data(write_run(tmp_path, before=evaluation(0.0, **sampled), after=evaluation(0.6, **sampled)))
    assert environment_headline(data) == "In Lake-v0 the expected discounted return went from 0 to 0.6 (mean of 7 episodes)."
    assert [row.label for row in environment_rows(data)] == ["Discounted return", "Its standard deviation"]
    assert shown_episodes(data) == []


@pytest.mark.parametrize(
    ("found", "best", "share"), [(0.6, 0.8, 0.75), (-20.0, -15.0, 0.75), (-1.0, 5.0, None), (0.0, 5.0, None), (1.0, None, None)]
)
def test_a_share_of_the_optimum(found: float, best: float | None, share: float | None) -> None:
    assert share_of_optimum(evaluation(found, optimal_return=best)) == (None if share is None else pytest.approx(share))


def test_a_frame_keeps_its_marks_and_nothing_else_of_the_terminal(tmp_path: Path) -> None:
    data = load_report_data(write_run(tmp_path, before=evaluation(0.0), after=None))
    [episode] = shown_episodes(data)
    assert episode.label == "before"
    assert episode.outcome == "return 1, ended after 3 steps, of which the first 0 are shown"
    assert [(part.text, part.is_marked) for part in episode.frames[0]] == [("S", True), ("G", False)]


@pytest.mark.parametrize("num_columns", [2, 12])  # beside the curves, and below them
def test_the_page_holds_everything_also_of_an_unfinished_run(tmp_path: Path, num_columns: int) -> None:
    wide = Grid(
        cells=(tuple("S" * (num_columns - 1) + "G"),),
        values=(tuple(map(float, range(num_columns))),),
        arrows=(("right",) * (num_columns - 1) + ("",),),
    )
    hostile = ShownEpisode(frames=("<script>alert(1)</script>",), num_steps=1, total=0.0, is_cut=True)
    run = write_run(tmp_path, before=evaluation(0.0, episode=hostile), after=evaluation(0.6, grid=wide))
    figures = draw_figures(run)
    assert figures.light != figures.dark
    page = write_report(run, figures).read_text()
    assert "<script>" not in page
    assert "<mark>S</mark>G" in page
    unfinished = write_run(tmp_path / "early", before=evaluation(0.0), after=None)
    assert "has no evaluation before and after yet" in write_report(unfinished, draw_figures(unfinished)).read_text()


def test_returns_over_environment_steps_are_not_discounted(tmp_path: Path) -> None:
    """As runs with RLlib leave them; the first iteration had no end of an episode."""
    sampled = {"is_discounted": False, "optimal_return": None, "return_std": 20.0, "num_episodes": 100, "grid": None}
    run = write_run(tmp_path, before=evaluation(9.5, **sampled), after=evaluation(470.0, **sampled))
    learned = {"value/explained_variance": 0.1, "policy/entropy": 0.6, "policy/approx_kl": 0.01, "value/q_mean": 3.0}
    lines: list[dict[str, float]] = [{"step": 2048, "rollout/env_steps_per_s": 900.0}]
    lines += [
        {"step": step, "episode/return_mean": step / 50, "episode/return_std": 9.0, "episode/length_mean": 4.0, **learned}
        for step in (4096, 6144)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    data = load_report_data(run)
    assert environment_headline(data) == "In Lake-v0 the expected return went from 9.5 to 470 (mean of 100 episodes)."
    assert [row.label for row in environment_rows(data)][:2] == ["Return", "Its standard deviation"]
    panels = [panel.__name__ for panel in _panels(data)]
    assert panels == ["draw_episode_return", "draw_episode_length", "draw_action_values", "draw_learner_health"]
    assert draw_figures(run).light.startswith(b"\x89PNG")


def test_a_run_without_episodes_of_its_own_shows_its_loss(tmp_path: Path) -> None:
    sampled = {"is_discounted": False, "optimal_return": None, "return_std": 20.0, "num_episodes": 100, "grid": None}
    run = write_run(tmp_path, before=evaluation(9.5, **sampled), after=evaluation(470.0, **sampled))
    lines = [{"step": step, "policy/loss": 1 / step, "optim/grad_norm": 1.0} for step in (2000, 4000)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [panel.__name__ for panel in _panels(load_report_data(run))] == ["draw_policy_loss"]
    assert draw_figures(run).light.startswith(b"\x89PNG")
