"""The report of a run: `report.png` and a self-contained `report.html`, made from the files of its directory."""

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cluster.display.progress import clock
from cluster.storage.atomic_file import write_atomically
from learners.evaluation.results import EvaluatedCompletion, EvaluationResult, Verdict, compare, verdicts
from learners.report.data import ReportData, load_report_data
from learners.report.drawing import DARK, LIGHT
from learners.report.environment_page import SummaryRow, environment_headline, environment_rows, shown_episodes
from learners.report.figure import draw_figure
from learners.settings.evaluation import JudgeConfig

TEMPLATE = Path(__file__).with_name("page.html.j2")
NUM_EXTREMES = 4  # highest and lowest scores shown
MAX_STEP_ROWS = 60
MAX_TINT = 0.42  # opacity of the strongest colour behind a score
TINT_RANGE_STD = 2.0  # a score this far from the starting mean has the strongest colour
STEP_COLUMNS = {  # metric -> (heading, format)
    "episode/return_mean": ("return", "{:+.3f}"),
    "episode/return_std": ("std", "{:.3f}"),
    "episode/expected_return": ("learned policy, discounted", "{:+.4f}"),
    "episode/length_mean": ("steps", "{:.1f}"),
    "episode/epsilon": ("epsilon", "{:.3f}"),
    "planning/start_value": ("value of the start", "{:+.6f}"),
    "planning/max_change": ("largest change", "{:.1e}"),
    "planning/changed_states": ("changed states", "{:.0f}"),
    "score/mean": ("score", "{:+.3f}"),
    "score/std": ("std", "{:.3f}"),
    "policy/ref_kl_nats_per_completion": ("KL, nats", "{:.2f}"),
    "rollout/completion_tokens_mean": ("tokens", "{:.1f}"),
    "policy/clip_frac": ("clipped", "{:.1%}"),
    "policy/approx_kl": ("update KL", "{:.4f}"),
    "policy/mismatch_kl": ("mismatch KL", "{:.4f}"),
    "value/explained_variance": ("explained var.", "{:.2f}"),
    "optim/grad_norm": ("grad norm", "{:.2f}"),
    "rollout/tokens_per_s": ("tok/s", "{:.0f}"),
    "rollout/env_steps_per_s": ("steps/s", "{:.0f}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCell:
    """One completion, ready to print."""

    completion: str
    score: str
    detail: str
    tint: str  # CSS colour


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePair:
    """What both policies made of one prompt; None where one was not evaluated on it."""

    prompt: str
    before: SampleCell | None
    after: SampleCell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The same curves on two backgrounds, as PNG. Produced by `draw_figures`, consumed by `write_report`."""

    light: bytes
    dark: bytes


class ReportInTheMaking:
    """The report of a run that is about to end: figures drawn while Ray stops, the page written when the run is over."""

    def __init__(self) -> None:
        self._figures: Future[Figures] | None = None

    def begin(self, run_dir: Path) -> None:
        """Draw in a thread; to be called once nothing will be measured any more."""
        drawing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="figures")
        self._figures = drawing.submit(draw_figures, run_dir)
        drawing.shutdown(wait=False)

    def finish(self, run_dir: Path) -> Path:
        """Write the report; return the page, which says how the run ended. Draws what was not begun."""
        return write_report(run_dir, draw_figures(run_dir) if self._figures is None else self._figures.result())


def draw_figures(run_dir: Path) -> Figures:
    """From what the run has written so far."""
    data = load_report_data(run_dir)
    return Figures(light=draw_figure(data, LIGHT), dark=draw_figure(data, DARK))


def write_report(run_dir: Path, figures: Figures) -> Path:
    """Write report.png and report.html into `run_dir`; return the page. Works on unfinished runs with what is there."""
    write_atomically(run_dir / "report.png", figures.light)
    page = run_dir / "report.html"
    write_atomically(page, _render(load_report_data(run_dir), figures))
    return page


def _render(data: ReportData, figures: Figures) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["clock"] = clock
    before, after = data.before, data.after
    pairs = _pair_samples(data)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        summary=data.summary,
        light_png=base64.b64encode(figures.light).decode(),
        dark_png=base64.b64encode(figures.dark).decode(),
        headline=_headline(data),
        rows=environment_rows(data) if data.environment else _summary_rows(data),
        evaluated_on="without exploration" if data.environment else "on prompts that were not trained on",
        episodes=shown_episodes(data),
        verdicts=_verdicts(data),
        reward_model="" if before is None or after is None else _reward_model_sentence(data.summary),
        num_trained=data.num_trained,
        pairs=pairs[: data.evaluation.num_shown],
        num_pairs=len(pairs),
        extremes=_extremes(data),
        wall_s=data.summary.get("wall_s", {}),
        versions={**data.summary.get("versions", {}), **data.summary.get("machine", {})},
        config_yaml=data.config_yaml,
        step_heads=[heading for name, (heading, _) in STEP_COLUMNS.items() if data.series(name)[0]],
        step_rows=_step_rows(data),
    )


def _headline(data: ReportData) -> str:
    if data.environment:
        return environment_headline(data)
    before, after = data.before, data.after
    if before is None or after is None:
        found = _pretraining_sentence(data.summary) or _reward_model_sentence(data.summary)
        return found or "This run has no evaluation before and after yet."
    change = compare(before, after)
    shares = [
        f", {judge.share_title or judge.shown} from {before.judge_shares[judge.function]:.0%} "
        f"to {after.judge_shares[judge.function]:.0%}"
        for judge in data.evaluation.judges
        if judge.share_above is not None
    ]
    return (
        f"On {after.num_prompts} held-out prompts the score went from {before.score_mean:+.2f} to {after.score_mean:+.2f} "
        f"({change['score_gain_in_starting_std']:+.2f} starting standard deviations){''.join(shares)}, "
        f"at {after.kl_nats_per_completion:.1f} nats from the start."
    )


def _verdicts(data: ReportData) -> list[Verdict]:
    return [] if data.before is None or data.after is None else verdicts(data.before, data.after, data.evaluation)


def _judge_fields(judge: JudgeConfig) -> "list[tuple[str, str, Callable[[EvaluationResult], float]]]":
    name = judge.function
    fields: list[tuple[str, str, Callable[[EvaluationResult], float]]] = [
        (f"{judge.shown}, mean", "{:+.2f}", lambda result: result.judge_means[name])
    ]
    if judge.share_above is not None:
        title = f"{judge.share_title or judge.shown} (above {judge.share_above:g})"
        fields.insert(0, (title[0].upper() + title[1:], "{:.1%}", lambda result: result.judge_shares[name]))
    return fields


def _summary_rows(data: ReportData) -> list[SummaryRow]:
    before, after = data.before, data.after
    signed, plain, share = "{:+.2f}", "{:.2f}", "{:.1%}"
    fields: list[tuple[str, str, Callable[[EvaluationResult], float]]] = [
        ("Score, mean", signed, lambda result: result.score_mean),
        ("Score, standard deviation", plain, lambda result: result.score_std),
        *(field for judge in data.evaluation.judges for field in _judge_fields(judge)),
        ("KL to the start, nats per completion", plain, lambda result: result.kl_nats_per_completion),
        ("Completion length, tokens", "{:.1f}", lambda result: result.completion_tokens_mean),
        ("Distinct bigrams", share, lambda result: result.distinct_2),
    ]
    if before is None and after is None:
        return []
    rows = []
    for label, template, value_of in fields:
        old = None if before is None else value_of(before)
        new = None if after is None else value_of(after)
        rows.append(
            SummaryRow(
                label=label,
                before="" if old is None else template.format(old),
                after="" if new is None else template.format(new),
                change="" if old is None or new is None else _change(new - old, template),
            )
        )
    return rows


def _change(difference: float, template: str) -> str:
    """A share changes by percentage points, anything else in its own unit."""
    if template.endswith("%}"):
        return f"{100 * difference:+.1f} points"
    return template.replace("{:.", "{:+.").format(difference)


def _pretraining_sentence(summary: dict[str, Any]) -> str:
    before, after = (summary.get(moment, {}).get("perplexity") for moment in ("before", "after"))
    return f"The perplexity of the held-out text went from {before:.2f} to {after:.2f}." if before and after else ""


def _reward_model_sentence(summary: dict[str, Any]) -> str:
    found = summary.get("reward_model", {})
    if "accuracy" not in found:
        return ""
    sentence = f"The reward model orders {found['accuracy']:.1%} of held-out pairs as people do"
    if "num_pairs" in found:
        sentence += f" ({found['num_pairs']:,} pairs)"
    if "human_agreement" in found:
        sentence += f"; a single human rater orders {found['human_agreement']:.1%} of them as the mean of all raters does"
    return sentence + "."


def _pair_samples(data: ReportData) -> list[SamplePair]:
    """The n-th completions of the same prompt side by side, in the order of evaluation."""
    befores, afters = _by_prompt(data.before_samples), _by_prompt(data.after_samples)
    return [
        SamplePair(prompt=prompt, before=_cell(old, data), after=_cell(new, data))
        for prompt in {**befores, **afters}
        for old, new in zip_longest(befores.get(prompt, ()), afters.get(prompt, ()))
    ]


def _extremes(data: ReportData) -> list[tuple[str, list[SamplePair]]]:
    """Highest and lowest scores after training: where a policy that fools its reward model shows itself."""
    ranked = sorted(data.after_samples, key=lambda sample: sample.score, reverse=True)
    if not ranked:
        return []
    groups = (("Highest scores after", ranked[:NUM_EXTREMES]), ("Lowest scores after", ranked[: -NUM_EXTREMES - 1 : -1]))
    return [
        (title, [SamplePair(prompt=sample.prompt, before=None, after=_cell(sample, data)) for sample in samples])
        for title, samples in groups
    ]


def _by_prompt(samples: Sequence[EvaluatedCompletion]) -> dict[str, list[EvaluatedCompletion]]:
    by_prompt: dict[str, list[EvaluatedCompletion]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    return by_prompt


def _cell(sample: EvaluatedCompletion | None, data: ReportData) -> SampleCell | None:
    if sample is None:
        return None
    return SampleCell(
        completion=sample.completion,
        score=f"{sample.score:+.2f}",
        detail=", ".join(
            [
                *(f"{judge.shown} {sample.judgements[judge.function]:+.2f}" for judge in data.evaluation.judges),
                f"{sample.num_tokens} tokens",
                f"KL {sample.kl_nats:.1f} nats",
            ]
        ),
        tint=_tint(sample.score, data.before or data.after),
    )


def _tint(score: float, origin: EvaluationResult | None) -> str:
    """Green above the starting mean, red below: a reward model's zero has no meaning of its own."""
    assert origin is not None, "a sample comes from an evaluation"
    distance = (score - origin.score_mean) / (origin.score_std * TINT_RANGE_STD) if origin.score_std else 0.0
    colour = "0, 158, 115" if distance >= 0 else "213, 80, 50"
    return f"rgba({colour}, {MAX_TINT * min(abs(distance), 1.0):.2f})"


def _step_rows(data: ReportData) -> list[tuple[int, list[str]]]:
    """(step, formatted values), thinned evenly to MAX_STEP_ROWS with the last step kept."""
    columns = [(dict(zip(*data.series(name), strict=True)), template) for name, (_, template) in STEP_COLUMNS.items()]
    columns = [column for column in columns if column[0]]
    steps = sorted({step for values, _ in columns for step in values})
    stride = -(-len(steps) // MAX_STEP_ROWS) or 1
    return [
        (step, [template.format(values[step]) if step in values else "" for values, template in columns])
        for step in steps[::-1][::stride][::-1]
    ]
