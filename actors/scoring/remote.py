"""Scorers as Ray actors. Options (CPUs, GPUs, names) are set where the actors are created."""

import ray

from actors.scoring.http_scorer import HttpScorer
from actors.scoring.python_scorer import PythonScorer
from actors.scoring.scorer import RewardFunctionScorer, RewardModelScorer

RewardModelScorerActor = ray.remote(RewardModelScorer)
RewardFunctionScorerActor = ray.remote(RewardFunctionScorer)
PythonScorerActor = ray.remote(PythonScorer)
HttpScorerActor = ray.remote(HttpScorer)
