"""Scorers as Ray actors. Options (CPUs, GPUs, names) are set where the actors are created."""

from collections.abc import Sequence
from typing import Any

import ray

from actors.scoring.http_scorer import HttpScorer
from actors.scoring.python_scorer import PythonScorer
from actors.scoring.scorer import RewardFunctionScorer, RewardModelScorer, Scorer
from cluster.processes.object_store import fetch_all
from cluster.processes.supervision import PROGRESS_GROUP
from cluster.types import GroupTexts, Score, Stored, Unscored


class FromStore(Scorer):
    """A scorer that reads what it judges where the generators have put it."""

    def score_stored(self, groups: Sequence[Stored[GroupTexts]]) -> Sequence[Score | Unscored]:
        """As `score`, of all groups in a row."""
        return self.score([trajectory for group in fetch_all(groups) for trajectory in group.trajectories])


def _as_actor(scorer: type[Scorer]) -> Any:
    return ray.remote(concurrency_groups={PROGRESS_GROUP: 1})(type(scorer.__name__, (scorer, FromStore), {}))


RewardModelScorerActor = _as_actor(RewardModelScorer)
RewardFunctionScorerActor = _as_actor(RewardFunctionScorer)
PythonScorerActor = _as_actor(PythonScorer)
HttpScorerActor = _as_actor(HttpScorer)
