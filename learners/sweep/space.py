"""What a sweep varies: lists of values, and distributions. Values are texts, as they stand after `a.b=` of an override."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import ConfigError
from cluster.seeding import derive_seed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

CALL = re.compile(r"([a-z]+)\((.*)\)", re.S)
RANGES = {"uniform": (False, False), "loguniform": (True, False), "randint": (False, True), "lograndint": (True, True)}
DISTRIBUTIONS = "uniform(LOW,HIGH), loguniform(LOW,HIGH), randint(LOW,HIGH), lograndint(LOW,HIGH) or choice(A,B,...)"
NUM_DIGITS = 4  # significant ones of a drawn number, so that people can read and repeat it
OPENING, CLOSING = "[{(", "]})"

Point = dict[str, str]  # setting -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from low to high, both inclusive. Produced by `parse_space`."""

    low: float
    high: float
    is_log: bool  # drawn evenly in the logarithm
    is_whole: bool

    def draw(self, generator: np.random.Generator) -> str:
        low, high = self.low, self.high + 1 if self.is_whole else self.high
        drawn = math.exp(generator.uniform(math.log(low), math.log(high))) if self.is_log else generator.uniform(low, high)
        return self.text(math.floor(drawn) if self.is_whole else drawn)

    def text(self, value: float) -> str:
        """Rounded, but not beyond the ends."""
        if self.is_whole:
            return str(int(min(max(value, self.low), self.high)))
        return repr(min(max(float(f"{value:.{NUM_DIGITS}g}"), self.low), self.high))

    def extremes(self) -> list[str]:
        return [self.text(self.low), self.text(self.high)]

    def for_optuna(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log)
        return FloatDistribution(self.low, self.high, log=self.is_log)

    def optuna_value(self, text: str) -> int | float:
        return int(text) if self.is_whole else float(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several values, each as likely. Produced by `parse_space`."""

    values: tuple[str, ...]

    def draw(self, generator: np.random.Generator) -> str:
        return self.values[int(generator.integers(len(self.values)))]

    def text(self, value: str) -> str:
        return value

    def extremes(self) -> list[str]:
        return list(self.values)

    def for_optuna(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def optuna_value(self, text: str) -> str:
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All that a sweep varies. Produced by `parse_space`."""

    grid: Mapping[str, Choice]
    sample: Mapping[str, Range | Choice]

    @property
    def settings(self) -> dict[str, Range | Choice]:
        return {**self.grid, **self.sample}

    def points(self, *, num_samples: int, seed: int) -> list[Point]:
        """Every combination of the grid `num_samples` times, each with draws of its own. More samples only add points."""
        names = list(self.grid)
        combinations = itertools.product(*(self.grid[name].values for name in names))
        listed = [dict(zip(names, values, strict=True)) for values in combinations]
        points = []
        for number, combination in enumerate(listed * num_samples):
            generator = np.random.default_rng(derive_seed(seed, "sweep", number))
            points.append({**combination, **{name: each.draw(generator) for name, each in self.sample.items()}})
        return points

    def outermost(self) -> list[Point]:
        """The least and the largest value of each setting, or each choice, the others at their first."""
        first = {name: each.extremes()[0] for name, each in self.settings.items()}
        return [{**first, name: value} for name, each in self.settings.items() for value in each.extremes()]


def overrides_of(point: Point) -> list[str]:
    """`a.b=c` for each setting."""
    return [f"{name}={value}" for name, value in point.items()]


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`a.b=1,2,3`, each of them. Commas inside brackets belong to a value. Raises `ConfigError`."""
    return {name: tuple(_split(values)) for name, values in _named(texts, "--grid", "a.b=1,2,3").items()}


def parse_sample(texts: Sequence[str]) -> dict[str, str]:
    """`c.d=loguniform(1e-6,1e-4)`, each of them, not read any further. Raises `ConfigError`."""
    return _named(texts, "--sample", "c.d=loguniform(1e-6,1e-4)")


def parse_space(grid: Mapping[str, Sequence[str]], sample: Mapping[str, str]) -> Space:
    """Raises `ConfigError` with every distribution that cannot be read."""
    problems: list[str] = []
    for name, values in grid.items():
        if "" in values:
            problems.append(f"--grid {name}: one of its values is empty ({','.join(values)})")
        if len(set(values)) < len(values):
            problems.append(f"--grid {name}: a value stands there twice ({','.join(values)})")
    found: dict[str, Range | Choice] = {}
    for name, text in sample.items():
        try:
            found[name] = _distribution(text)
        except ValueError as error:
            problems.append(f"--sample {name}={text}: {error}")
    if problems:
        raise ConfigError(problems)
    return Space(grid={name: Choice(values=tuple(values)) for name, values in grid.items()}, sample=found)


def _named(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    named: dict[str, str] = {}
    problems = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not name or not equals or not values:
            problems.append(f"{option} {text}: expected a setting and its values, for example {option} {example}")
        elif name in named:
            problems.append(f"{option} {name}: given twice; put all of its values into one")
        else:
            named[name] = values
    if problems:
        raise ConfigError(problems)
    return named


def _distribution(text: str) -> Range | Choice:
    """Raises `ValueError`."""
    match = CALL.fullmatch(text.strip())
    kind, inside = match.groups() if match else ("", "")
    values = _split(inside)
    if kind == "choice":
        if "" in values or len(set(values)) < len(values):
            raise ValueError("choice needs different values, none of them empty")
        return Choice(values=tuple(values))
    if kind not in RANGES:
        raise ValueError(f"not a distribution; write {DISTRIBUTIONS}")
    is_log, is_whole = RANGES[kind]
    try:
        low, high = (float(int(value)) if is_whole else float(value) for value in values)
    except ValueError:
        raise ValueError(f"{kind} needs two {'whole ' if is_whole else ''}numbers, the lowest and the highest") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the first number must be below the second, and {low:g} and {high:g} are not so")
    if is_log and low <= 0:
        raise ValueError(f"a logarithmic scale begins above 0, not at {low:g}")
    return Range(low=low, high=high, is_log=is_log, is_whole=is_whole)


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
