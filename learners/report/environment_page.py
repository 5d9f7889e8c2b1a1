"""What the page says of a run in an environment: how good the policy became, and an episode of it before and after."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

from learners.evaluation.returns import EnvironmentEvaluation, ShownEpisode
from learners.report.data import ReportData

SGR = re.compile(r"\x1b\[([0-9;]*)m")  # Select Graphic Rendition: how terminals colour text
OTHER_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One line of the table of results, ready to print."""

    label: str
    before: str
    after: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePart:
    """Text of one frame, marked or not."""

    text: str
    is_marked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeView:
    """One episode, ready to print."""

    label: str
    outcome: str
    frames: list[list[EpisodePart]]
    film: str  # GIF in base64; empty where there is none


def environment_headline(data: ReportData) -> str:
    """The result in one sentence."""
    before, after = data.before_in_environment, data.after_in_environment
    if before is None or after is None:
        return f"This run in {data.environment} has no evaluation before and after yet."
    how = "exact" if after.num_episodes == 0 else f"mean of {after.num_episodes} episodes"
    found = f"went from {before.return_mean:.4g} to {after.return_mean:.4g} ({how})"
    sentence = f"In {data.environment} the expected {'discounted ' if after.is_discounted else ''}return {found}"
    share = share_of_optimum(after)
    if best := data.summary.get("best"):
        sentence += f" with the policy of environment step {best['env_step']:,}, the best of those evaluated on the way"
    if after.optimal_return is None:
        return sentence + "."
    return f"{sentence}; the optimum is {after.optimal_return:.4g}{'' if share is None else f', of which that is {share:.1%}'}."


def share_of_optimum(evaluation: EnvironmentEvaluation) -> float | None:
    """1 at the optimum, also where returns are negative; None where they have no such share."""
    found, best = evaluation.return_mean, evaluation.optimal_return
    if best is None or found * best <= 0:
        return None
    return found / best if best > 0 else best / found


def environment_rows(data: ReportData) -> list[SummaryRow]:
    """Before and after."""
    before, after = data.before_in_environment, data.after_in_environment
    if before is None:
        return []

    def row(label: str, old: float, new: float | None, template: str) -> SummaryRow:
        change = "" if new is None else template.replace("{:", "{:+").format(new - old)
        return SummaryRow(
            label=label, before=template.format(old), after="" if new is None else template.format(new), change=change
        )

    name = "Discounted return" if before.is_discounted else "Return"
    rows = [
        row(
            name,
            before.return_mean,
            None if after is None else after.return_mean,
            "{:.4g}",
        )
    ]
    if before.return_std is not None:
        rows.append(row("Its standard deviation", before.return_std, None if after is None else after.return_std, "{:.4g}"))
    if before.optimal_return is not None:
        optimum = f"{before.optimal_return:.4g}"
        rows.append(SummaryRow(label="Optimum", before=optimum, after=optimum, change=""))
    if before.episode is not None:
        shown = None if after is None else after.episode
        rows.append(row("Return of the episode below", before.episode.total, None if shown is None else shown.total, "{:.4g}"))
        rows.append(
            row("Its steps", before.episode.num_steps, None if shown is None else shown.num_steps, "{:.0f}"),
        )
    return rows


def shown_episodes(data: ReportData) -> list[EpisodeView]:
    """One before and one after, from the same start; those that can be shown."""
    sides = (("before", data.before_in_environment), ("after", data.after_in_environment))
    return [
        EpisodeView(
            label=label,
            outcome=_outcome(found.episode),
            frames=[list(_parts(frame)) for frame in found.episode.frames],
            film=base64.b64encode(found.episode.film or b"").decode(),
        )
        for label, found in sides
        if found is not None and found.episode is not None and (found.episode.frames or found.episode.film)
    ]


def _outcome(episode: ShownEpisode) -> str:
    end = "cut after" if episode.is_cut else "ended after"
    shown = len(episode.frames) - 1
    rest = f", of which the first {shown} are shown" if 0 <= shown < episode.num_steps else ""
    return f"return {episode.total:g}, {end} {episode.num_steps} steps{rest}"


def _parts(frame: str) -> Iterator[EpisodePart]:
    """Split where the colour changes; any colour is a mark, which is where the agent or its aim is."""
    is_marked = False
    for index, piece in enumerate(SGR.split(frame.strip("\n"))):
        if index % 2:
            is_marked = piece not in ("", "0")
        elif piece:
            yield EpisodePart(text=OTHER_CONTROLS.sub("", piece), is_marked=is_marked)
