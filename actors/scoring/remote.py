"""Scorers as Ray actors. Options (CPUs, GPUs, names) are set where the actors are created."""

import ray

from actors.scoring.http_scorer import HttpScorer
from actors.scoring.python_scorer import PythonScorer
from actors.scoring.scorer import RewardFunctionScorer, RewardModelScorer
from cluster.processes.supervision import PROGRESS_GROUP

_as_actor = ray.remote(concurrency_groups={PROGRESS_GROUP: 1})
RewardModelScorerActor = _as_actor(RewardModelScorer)
RewardFunctionScorerActor = _as_actor(RewardFunctionScorer)
PythonScorerActor = _as_actor(PythonScorer)
HttpScorerActor = _as_actor(HttpScorer)
