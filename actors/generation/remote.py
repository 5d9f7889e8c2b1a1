"""Generators as Ray actors. Options (CPUs, GPUs, names) are set where the actors are created."""

import ray

from actors.generation.device_generator import DeviceFedGenerator
from actors.generation.vllm_generator import VLLMGenerator

MAX_CONCURRENT_CALLS = 512  # coroutines of one generator; its engine queues what does not fit into a batch

GeneratorActor = ray.remote(max_concurrency=MAX_CONCURRENT_CALLS)(VLLMGenerator)
DeviceFedGeneratorActor = ray.remote(max_concurrency=MAX_CONCURRENT_CALLS)(DeviceFedGenerator)
