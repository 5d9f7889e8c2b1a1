"""How long a completion is."""

from cluster.types import Trajectory


def score(trajectory: Trajectory) -> float:
    """Completion tokens, the end of sequence included."""
    return float(len(trajectory.completion.token_ids))
