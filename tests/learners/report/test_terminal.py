"""What a run looks like on a terminal: the numbers of its files, no more, and nothing that could drive the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from cluster.errors import DataError
from cluster.storage import run_directory
from learners.report import terminal
from learners.report.terminal import SPARK_LEVELS, list_runs, run_view, runs_table, sparkline, summary_of


def sample(prompt: str, completion: str, score: float) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completion": completion,
        "score": score,
        "judgements": {"vader": 0.1},
        "num_tokens": 4,
        "kl_nats": 1.0,
    }


def write_run(path: Path, **changes: Any) -> Path:
    """A finished run with two evaluated prompts and three steps."""
    (path / "evaluation").mkdir(parents=True)
    (path / "policies" / "v000003").mkdir(parents=True)
    summary = {
        "state": "completed",
        "name": path.name,
        "started_at": "2026-01-02T03:04:05+00:00",
        "wall_s": {"start": 20.0, "train": 100.5},
        "before": {"score_mean": 0.5},
        "after": {"score_mean": 1.75},
    }
    (path / "summary.json").write_text(json.dumps({**summary, **changes}))
    (path / "report.html").write_text("<html></html>")
    lines = [
        {"step": step, "score/mean": float(step), "policy/ref_kl_nats_per_completion": 0.1 * step, "rollout/tokens_per_s": 300.0}
        for step in range(3)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = [sample("The film is", "a dull affair", 0.0), sample("I found it", "slow indeed", 1.0)]
    after = [sample("The film is", "a joy to watch", 1.5), sample("I found it", "warm and witty", 2.0)]
    (path / "evaluation" / "before.json").write_text(json.dumps(before))
    (path / "evaluation" / "after.json").write_text(json.dumps(after))
    return path


def rendered(renderable: RenderableType) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def row(text: str, label: str) -> list[str]:
    """The cells of the table row that starts with `label`."""
    (line,) = [line for line in text.splitlines() if line.strip("\u2502 ").startswith(label)]
    return [cell.strip() for cell in line.strip("\u2502").split("\u2502")]


def test_before_after_and_change_come_from_the_samples(tmp_path: Path) -> None:
    text = rendered(run_view(write_run(tmp_path / "night")))
    assert row(text, "score mean") == ["score mean", "0.5", "1.75", "+1.25"]  # (0 + 1) / 2; (1.5 + 2) / 2
    assert row(text, "train") == ["train", "100.5"]
    assert "night  completed  2:00" in text  # 120.5 s
    for part in ("a dull affair", "a joy to watch", "+1.50", "slow indeed", "+2.00"):
        assert part in text


def test_curves_show_first_last_and_shape(tmp_path: Path) -> None:
    text = rendered(run_view(write_run(tmp_path / "night")))
    cells = [[cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in text.splitlines()]
    assert ["score", "0", "2", SPARK_LEVELS[0] + SPARK_LEVELS[4] + SPARK_LEVELS[7]] in cells
    assert ["generated tokens a second", "300", "300", SPARK_LEVELS[4] * 3] in cells


def test_where_to_go_next(tmp_path: Path) -> None:
    run = write_run(tmp_path / "night")
    text = rendered(run_view(run)).replace("\n", "")
    assert str(run / "report.html") in text
    assert f"rayward serve {run}" in text


def test_only_the_first_three_prompts_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "night")
    samples = [sample(f"Prompt {number}", f"answer {number}", 0.0) for number in range(5)]
    (run / "evaluation" / "before.json").write_text(json.dumps(samples))
    text = rendered(run_view(run))
    assert "answer 2" in text
    assert "answer 3" not in text


def test_several_samples_of_a_prompt_show_the_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "night")
    for name, shown, hidden in (("before", "shown-1", "hidden-1"), ("after", "shown-2", "hidden-2")):
        samples = [sample("The film is", shown, 0.0), sample("The film is", hidden, 0.0)]
        (run / "evaluation" / f"{name}.json").write_text(json.dumps(samples))
    text = rendered(run_view(run))
    assert "shown-1" in text
    assert "shown-2" in text
    assert "hidden" not in text


def test_what_a_model_wrote_cannot_drive_the_terminal(tmp_path: Path) -> None:
    run = write_run(tmp_path / "night", error="\x1b]0;title\x07 [bold]x")
    hostile = "\x1b[2J\x1b]8;;http://x\x1b\\ [red]marked[/red] \r\x9b1m"
    (run / "evaluation" / "before.json").write_text(json.dumps([sample(f"P{hostile}", hostile, 0.0)]))
    text = rendered(run_view(run))
    assert not {character for character in text if not character.isprintable()} - {"\n"}
    assert "[red]marked[/red]" in text
    assert "[bold]x" in text


def test_a_reward_model_run_shows_its_accuracy(tmp_path: Path) -> None:
    path = tmp_path / "judge"
    path.mkdir()
    summary = {
        "state": "completed",
        "wall_s": {"reward model": 90.0},
        "reward_model": {"accuracy": 0.853, "human_agreement": 0.9},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    text = rendered(run_view(path))
    assert "85.3%" in text
    assert "90.0%" in text
    assert "Samples" not in text
    assert "rayward serve" not in text
    assert list_runs(tmp_path)[0]["result"] == {"accuracy": 0.853, "human_agreement": 0.9}


def test_a_run_that_failed_early_shows_why(tmp_path: Path) -> None:
    path = tmp_path / "early"
    path.mkdir()
    (path / "summary.json").write_text(json.dumps({"state": "failed", "error": "DataError: no texts"}))
    text = rendered(run_view(path))
    assert "failed" in text
    assert "stopped by DataError: no texts" in text


def test_a_run_that_was_evaluated_once_has_no_change(tmp_path: Path) -> None:
    run = write_run(tmp_path / "half", state="interrupted")
    (run / "evaluation" / "after.json").unlink()
    assert row(rendered(run_view(run)), "score mean") == ["score mean", "0.5", "", ""]


def test_the_summary_is_what_the_file_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "night")
    assert summary_of(run) == {**json.loads((run / "summary.json").read_text()), "path": str(run)}


def test_a_bare_name_is_found_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "RUNS_DIR", tmp_path / "runs")
    run = write_run(tmp_path / "runs" / "night")
    assert summary_of(Path("night"))["path"] == str(run)


def test_no_run_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run directory.*rayward runs"):
        summary_of(tmp_path)
    with pytest.raises(DataError, match="nowhere or runs/nowhere is not a run directory"):
        run_view(Path("nowhere"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"state": "great"}'])
def test_a_broken_summary_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(DataError, match=r"summary\.json"):
        summary_of(tmp_path)


def test_runs_are_listed_by_start_and_broken_ones_do_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "second", started_at="2026-02-02T00:00:00+00:00")
    write_run(tmp_path / "first", started_at="2026-02-01T00:00:00+00:00")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    (tmp_path / "other").mkdir()
    runs = list_runs(tmp_path)
    assert [(run["name"], run["state"]) for run in runs] == [
        ("broken", "unreadable"),
        ("first", "completed"),
        ("second", "completed"),
    ]
    assert runs[1]["seconds"] == 120.5
    assert runs[1]["result"] == {"score_before": 0.5, "score_after": 1.75}
    json.dumps(runs, allow_nan=False)
    text = rendered(runs_table(runs))
    assert "score 0.50 -> 1.75" in text
    assert "unreadable" in text


def test_no_runs_yet(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "absent") == []
    assert "rayward quickstart" in rendered(runs_table([]))


def test_sparkline_scales_from_lowest_to_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == SPARK_LEVELS[4] * 2
    assert sparkline(list(range(8))) == SPARK_LEVELS
    assert sparkline([7.0, 0.0]) == SPARK_LEVELS[7] + SPARK_LEVELS[0]


def test_sparkline_averages_what_does_not_fit() -> None:
    assert sparkline([0, 2, 6, 8], width=2) == SPARK_LEVELS[0] + SPARK_LEVELS[7]
    assert len(sparkline([float(value) for value in range(1003)])) == terminal.SPARK_WIDTH


def test_a_ledger_is_audited_on_the_terminal(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "trajectories").mkdir(exist_ok=True)
    for path in (run / "trajectories").iterdir():
        path.unlink()
    audit = terminal.audit_of(run)
    assert (audit["num_steps"], audit["problems"]) == (0, ())
    assert "each trajectory is there once" in rendered(terminal.audit_view(audit))
    assert "step 3 is missing" in rendered(terminal.audit_view({**audit, "problems": ("step 3 is missing",)}))
