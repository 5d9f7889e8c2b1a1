"""Errors that reach a user: what is wrong, the value, and what to do. Each carries the command's exit code."""

from collections.abc import Sequence


class RaywardError(Exception):
    """Any failure that Rayward explains itself; exit code 1 unless a subclass says otherwise."""

    exit_code = 1


class ConfigError(RaywardError):
    """Bad usage or configuration, found before Ray starts. Holds every problem found, one line each."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RaywardError):
    """A file, a record or a model folder is not what it must be."""

    exit_code = 2


class FetchError(RaywardError):
    """A model or data set could not be had; the message names the package and the way around."""


class WeightMismatchError(RaywardError):
    """A generator does not hold the weights that the learner published."""


class WeightsLostError(WeightMismatchError):
    """Published weights are gone, with their host or because newer ones took their place; publish again."""


class StaleLinkError(RaywardError):
    """Weights came over a link that a newer one has replaced."""


class ActorLostError(RaywardError):
    """An actor lives, but what it works with has died, for example its engine; it must be replaced."""


class SamplesLostError(RaywardError):
    """What generators made is lost with the node on which it lay; sample it again."""


class BatchLostError(SamplesLostError):
    """The same, known to all ranks of a learner before any of them has changed anything; they wait for the next call."""


class LearnerRestartedError(RaywardError):
    """The learner's ranks were lost and replaced; ask again, from the step that they went back to."""


class EndpointError(RaywardError):
    """An HTTP endpoint did not answer, or refused what it was asked."""


class EnvironmentFailedError(RaywardError):
    """The environment that a run learns in raised an exception: its author's to correct."""


class FeedbackConflictError(RaywardError):
    """An idempotency key came again with another preference; a new judgement needs a new key."""


class FeedbackNotKeptError(RaywardError):
    """A preference could not be written, for example because the disk is full; the same key may be sent again."""


class NotWrittenError(RaywardError, OSError):
    """A file could not be written, for example because the disk is full; the message says how much space is left."""


class CannotResumeError(RaywardError):
    """A run directory holds something that cannot be continued safely."""

    exit_code = 3


class RunDirectoryInUseError(RaywardError):
    """Another live process owns the run directory."""

    exit_code = 4


class RunInterruptedError(RaywardError):
    """Ctrl-C or SIGTERM; everything was stopped before this is raised."""

    exit_code = 130


class UnexpectedError(RaywardError):
    """An exception that nobody foresaw; the message names the file that holds its traceback."""
