"""What people are told of ranks that ended."""

from collections.abc import Mapping

from ray.exceptions import RayError

from cluster.errors import ConfigError, DataError
from cluster.processes.losses import is_out_of_memory, reason_of

FOUND_OF_A_RANK = "health_check_failure"  # in Ray Train's own error about a rank that does not answer: Ray's error
MEMORY_ADVICE = "lower micro_batch_tokens or logprob_chunk_tokens of learner.workers; `rayward plan` shows what each role takes"


def said_of_a_rank(failure: Exception) -> str:
    """In words: Ray's own errors on one line, those of the rank's code whole."""
    failure = _found(failure)
    if is_out_of_memory(failure):
        return f"{reason_of(failure)}; {MEMORY_ADVICE}"
    return reason_of(failure) if isinstance(failure, RayError) else f"{type(failure).__name__}: {failure}"


def first_cause(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """(rank, failure) of the one that explains the others: where a rank is lost, those that were to meet it fail as well."""
    return min(failures.items(), key=lambda item: (_is_an_effect(item[1]), item[0]))


def _is_an_effect(failure: Exception) -> int:
    """From 0, a kill for memory or what the user must fix, to 2, what else the rank's code raised."""
    found = _found(failure)
    return 0 if is_out_of_memory(found) or isinstance(found, ConfigError | DataError) else 1 if isinstance(found, RayError) else 2


def _found(failure: Exception) -> Exception:
    """Ray's own error, where Ray Train has put one of its own around it."""
    found: Exception = vars(failure).get(FOUND_OF_A_RANK, failure)
    return found
