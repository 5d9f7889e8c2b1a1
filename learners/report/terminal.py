"""Runs on a terminal: all of a folder as a table, or one with its curves, its samples and where to go next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import read_yaml
from cluster.display.printable import printable
from cluster.errors import DataError
from cluster.storage.ledger import audit_ledger
from cluster.storage.run_directory import CONFIG_NAME, SUMMARY_NAME, find_run, read_summary
from learners.evaluation.results import EvaluatedCompletion, EvaluationResult, verdicts
from learners.report.data import ReportData, load_report_data
from learners.report.environment_page import environment_rows

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

CURVES = {  # metric -> its name on the screen
    "score/mean": "score",
    "policy/ref_kl_nats_per_completion": "KL to the reference, nats a completion",
    "episode/return_mean": "return of an episode",
    "episode/expected_return": "expected discounted return of the learned policy",
    "episode/length_mean": "steps of an episode",
    "planning/start_value": "value of the start",
    "rollout/tokens_per_s": "generated tokens a second",
    "rollout/env_steps_per_s": "environment steps a second",
    "reward_model/train_accuracy": "reward model: accuracy while training",
}
SPARK_LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # eighths of a line, from low to full
SPARK_WIDTH = 40
NUM_SHOWN_SAMPLES = 3
DIGEST_WIDTH = 16  # of 64 characters; --json has all
STATE_STYLE = {"completed": "green", "running": "cyan", "failed": "bold red", "interrupted": "yellow"}


def list_runs(runs_dir: Path) -> list[dict[str, Any]]:
    """One object a run, oldest first: name, state, started_at, seconds, result, error. A folder without a summary is no run."""
    if not runs_dir.is_dir():
        return []
    summaries = [(path.parent.name, _summary_or_error(path.parent)) for path in runs_dir.glob(f"*/{SUMMARY_NAME}")]
    rows = [
        {
            "name": name,
            "state": summary["state"],
            "started_at": summary.get("started_at"),
            "seconds": sum(summary.get("wall_s", {}).values()),
            "result": _result(summary),
            "error": summary.get("error"),
        }
        for name, summary in summaries
    ]
    return sorted(rows, key=lambda row: (row["started_at"] or "", row["name"]))


def runs_table(runs: Sequence[dict[str, Any]]) -> "RenderableType":
    """The list for a terminal."""
    from rich.table import Table
    from rich.text import Text

    if not runs:
        return Text("no runs here yet; start one with: rayward quickstart")
    table = Table("run", "state", "started", "time", "result")
    for run in runs:
        state = Text(run["state"], style=STATE_STYLE.get(run["state"], ""))
        result = run["error"] or _result_line(run["result"])
        table.add_row(_plain(run["name"]), state, run["started_at"] or "", _duration(run["seconds"]), _plain(result))
    return table


def summary_of(run: Path) -> dict[str, Any]:
    """summary.json of a run directory, or of `runs/<run>`, with its folder as "path"."""
    folder = find_run(run)
    return {**read_summary(folder), "path": str(folder)}


def run_view(run: Path) -> "RenderableType":
    """One run: state, before and after, curves, samples, time by stage, next commands. Parts that it lacks are left out."""
    from rich.console import Group

    data = load_report_data(find_run(run))
    sections = (_header, _reward_model, _in_environment, _comparison, _curves, _samples, _stages, _next)
    return Group(*(part for section in sections for part in section(data)))


def audit_of(run: Path) -> dict[str, Any]:
    """What a run's ledger says that it was trained on, recomputed; `problems` is empty where each trajectory counts once."""
    folder = find_run(run)
    return asdict(audit_ledger(folder / "trajectories", max_staleness=_max_staleness(folder)))


def _max_staleness(run: Path) -> int:
    """What the run's configuration allows; a quickstart's is that of its policy. Without a configuration it is 0."""
    if not (run / CONFIG_NAME).exists():
        return 0
    config = read_yaml(run / CONFIG_NAME)
    asynchronous = config.get("policy", config).get("asynchronous")
    return asynchronous["max_staleness"] if asynchronous else 0


def audit_view(audit: dict[str, Any]) -> "RenderableType":
    """The audit for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("ledger", "")
    for name, value in audit.items():
        if name != "problems":
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value[:DIGEST_WIDTH])
    verdict = [Text(problem, style="bold red") for problem in audit["problems"]] or [
        Text("each trajectory is there once, and no step is missing", style="green")
    ]
    return Group(table, *verdict)


def sparkline(values: Sequence[float], *, width: int = SPARK_WIDTH) -> str:
    """At most `width` blocks from the lowest value to the highest; each is the mean of its share of the values."""
    if not values:
        return ""
    num_bins = min(width, len(values))
    edges = [len(values) * index // num_bins for index in range(num_bins + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return SPARK_LEVELS[len(SPARK_LEVELS) // 2] * num_bins
    top = len(SPARK_LEVELS) - 1
    return "".join(SPARK_LEVELS[round((mean - low) / (high - low) * top)] for mean in means)


def _summary_or_error(folder: Path) -> dict[str, Any]:
    """A broken run must not hide the others from the list."""
    try:
        return read_summary(folder)
    except DataError as error:
        return {"state": "unreadable", "error": str(error)}


def _result(summary: dict[str, Any]) -> dict[str, float]:
    """What a run is judged by, as far as it came."""
    scores = {
        f"{name}_{moment}": summary[moment][f"{name}_mean"]
        for name in ("score", "return")
        for moment in ("before", "after")
        if f"{name}_mean" in summary.get(moment, {})
    }
    found = summary.get("reward_model", {})
    best = {"best": summary["best"]["value"]} if "best" in summary else {}  # trial of a sweep
    return {**{name: found[name] for name in ("accuracy", "human_agreement") if name in found}, **scores, **best}


def _result_line(result: dict[str, float]) -> str:
    parts = [
        f"{name} {result[f'{name}_before']:.2f} -> {result[f'{name}_after']:.2f}"
        for name in ("score", "return")
        if f"{name}_before" in result and f"{name}_after" in result
    ]
    if "best" in result:
        parts.append(f"best {result['best']:.4g}")
    if "accuracy" in result:
        parts.append(f"reward model {result['accuracy']:.1%}")
    return ", ".join(parts)


def _header(data: ReportData) -> "Iterator[RenderableType]":
    from rich.text import Text

    summary = data.summary
    state = summary["state"]
    seconds = sum(summary.get("wall_s", {}).values())
    yield Text.assemble((data.run_dir.name, "bold"), "  ", (state, STATE_STYLE[state]), f"  {_duration(seconds)}")
    if summary.get("error"):
        yield Text.assemble(("stopped by ", "bold red"), _plain(summary["error"]))


def _reward_model(data: ReportData) -> "Iterator[RenderableType]":
    found = data.summary.get("reward_model", {})
    rows = {
        "accuracy": "reward model: held-out pairs ordered as people order them",
        "human_agreement": "one person alone, against the mean of all raters",
    }
    if any(name in found for name in rows):
        table = _titled_table("Reward model", "quantity", "value")
        for name, label in rows.items():
            if name in found:
                table.add_row(label, f"{found[name]:.1%}")
        yield table


def _in_environment(data: ReportData) -> "Iterator[RenderableType]":
    rows = environment_rows(data) if data.environment else []
    if rows:
        table = _titled_table(f"In {data.environment}, without exploration", "quantity", "before", "after", "change")
        for row in rows:
            table.add_row(row.label, row.before, row.after, row.change)
        yield table


def _comparison(data: ReportData) -> "Iterator[RenderableType]":
    from rich.text import Text

    if data.before is None:
        return
    before, after = _numbers(data.before, data), None if data.after is None else _numbers(data.after, data)
    table = _titled_table("On prompts that were not trained on", "quantity", "before", "after", "change")
    for name, start in before.items():
        label = name.replace("_", " ")
        if after is None:
            table.add_row(label, f"{start:.4g}", "", "")
        else:
            table.add_row(label, f"{start:.4g}", f"{after[name]:.4g}", f"{after[name] - start:+.4g}")
    yield table
    if data.after is not None:
        for verdict in verdicts(data.before, data.after, data.evaluation):
            mark = ("yes", "green") if verdict.passed else ("no ", "yellow")
            yield Text.assemble(mark, f"  {verdict.question}: {verdict.found}")


def _numbers(result: EvaluationResult, data: ReportData) -> dict[str, float]:
    """A result as one row a number; a judge's under its title."""
    numbers = {name: value for name, value in asdict(result).items() if not isinstance(value, Mapping)}
    for judge in data.evaluation.judges:
        numbers[f"{judge.shown}, mean"] = result.judge_means[judge.function]
        if judge.share_above is not None:
            numbers[judge.share_title or f"{judge.shown} above {judge.share_above:g}"] = result.judge_shares[judge.function]
    return numbers


def _curves(data: ReportData) -> "Iterator[RenderableType]":
    table = _titled_table("Curves", "metric", "first", "last", "")
    for metric, label in CURVES.items():
        _, values = data.series(metric)
        if values:
            table.add_row(label, f"{values[0]:.3g}", f"{values[-1]:.3g}", sparkline(values))
    if table.row_count:
        yield table


def _samples(data: ReportData) -> "Iterator[RenderableType]":
    """The first prompts' completions side by side: no choice of flattering ones."""
    from rich.table import Table

    if not data.before_samples:
        return
    after_by_prompt = {sample.prompt: sample for sample in reversed(data.after_samples)}
    before_by_prompt = {sample.prompt: sample for sample in reversed(data.before_samples)}
    prompts = list(dict.fromkeys(sample.prompt for sample in data.before_samples))[:NUM_SHOWN_SAMPLES]
    table = Table(title="Samples", title_justify="left", title_style="bold", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, ratio=1, overflow="fold")
    for prompt in prompts:
        table.add_row(_plain(prompt), _sample(before_by_prompt.get(prompt)), _sample(after_by_prompt.get(prompt)))
    yield table


def _sample(sample: EvaluatedCompletion | None) -> "Text":
    from rich.text import Text

    if sample is None:
        return Text("")
    return Text.assemble((f"{sample.score:+.2f} ", "bold"), _plain(sample.completion.strip()))


def _stages(data: ReportData) -> "Iterator[RenderableType]":
    wall_s = data.summary.get("wall_s", {})
    if wall_s:
        table = _titled_table("Wall time", "stage", "seconds")
        for stage, seconds in wall_s.items():
            table.add_row(stage, f"{seconds:.1f}")
        yield table


def _next(data: ReportData) -> "Iterator[RenderableType]":
    from rich.text import Text

    report = data.run_dir / "report.html"
    if report.is_file():
        yield Text.assemble(("report  ", "bold"), str(report))
    policies = data.run_dir / "policies"
    if policies.is_dir() and any(policies.iterdir()):
        yield Text.assemble(("serve   ", "bold"), f"rayward serve {data.run_dir}")


def _titled_table(title: str, first: str, *numbers: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _plain(text: str) -> "Text":
    """Text that a model or a file wrote: no markup, and no control character that could drive the terminal."""
    from rich.text import Text

    return Text(printable(text))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
