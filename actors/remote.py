"""The plain classes of this room as Ray actors. Options (CPUs, GPUs, names) are set where the actors are created."""

import ray

from actors.scorer import RewardFunctionScorer, RewardModelScorer
from actors.vllm_generator import VLLMGenerator

MAX_CONCURRENT_CALLS = 512  # coroutines of one generator; its engine queues what does not fit into a batch

GeneratorActor = ray.remote(max_concurrency=MAX_CONCURRENT_CALLS)(VLLMGenerator)
RewardModelScorerActor = ray.remote(RewardModelScorer)
RewardFunctionScorerActor = ray.remote(RewardFunctionScorer)
