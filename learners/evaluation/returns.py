"""What a policy is worth in an environment, and what it does there; files of a run directory hold these records as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import DataError
from cluster.storage.atomic_file import write_atomically

BEFORE, AFTER = Path("evaluation") / "environment" / "before.json", Path("evaluation") / "environment" / "after.json"
FILM = ".gif"


def episodes_file(evaluation: Path) -> Path:
    """Where the episodes of an evaluation are, if they were kept."""
    return evaluation.with_name(f"{evaluation.stem}_episodes.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownEpisode:
    """One episode for people to look at. Produced by `learners.environments`, consumed by reports."""

    frames: tuple[str, ...]  # text with terminal colours, the first before any action; the beginning of a long episode
    num_steps: int
    total: float  # sum of rewards, undiscounted
    is_cut: bool  # not ended by a terminal state
    film: bytes | None = None  # GIF of the beginning, where the environment draws images


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A policy on a map. Produced by `learners.environments`, consumed by the figure. Rows from top to bottom."""

    cells: tuple[tuple[str, ...], ...]  # the map's own letters
    values: tuple[tuple[float, ...], ...]  # what the policy expects to follow
    arrows: tuple[tuple[str, ...], ...]  # left, down, right, up; empty where nothing is decided


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentEvaluation:
    """Of one policy. Produced by `learners.environments`, consumed by the summary and by reports."""

    is_discounted: bool  # whether returns are: a reward counts gamma to the steps before it
    return_mean: float
    return_std: float | None  # over episodes; None where the mean is exact
    optimal_return: float | None  # None where the model is not known
    num_episodes: int  # 0 where the mean is exact
    episode: ShownEpisode | None
    grid: Grid | None

    def numbers(self) -> dict[str, float | None]:
        """For the summary."""
        return {
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "optimal_return": self.optimal_return,
            "num_episodes": self.num_episodes,
        }


def write_evaluation(path: Path, evaluation: EnvironmentEvaluation) -> None:
    """As JSON, with the film of the episode beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = asdict(evaluation)
    film = None if values["episode"] is None else values["episode"].pop("film")
    if film is not None:
        write_atomically(path.with_suffix(FILM), film)
    write_atomically(path, json.dumps(values, indent=1))


def read_evaluation(path: Path) -> EnvironmentEvaluation | None:
    """None where there is no such file. Raises `DataError` where it is broken."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        film = path.with_suffix(FILM).read_bytes() if path.with_suffix(FILM).is_file() else None
        episode, grid = values.pop("episode"), values.pop("grid")
        return EnvironmentEvaluation(
            **values,
            episode=None if episode is None else ShownEpisode(**{**episode, "frames": tuple(episode["frames"]), "film": film}),
            grid=None if grid is None else Grid(**{name: tuple(map(tuple, rows)) for name, rows in grid.items()}),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not an evaluation in an environment: {error}") from error
