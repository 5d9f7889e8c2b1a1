"""Generators as Ray actors. Options (CPUs, GPUs, names) are set where the actors are created."""

import ray

from actors.generation.adapter_generator import AdapterGenerator
from actors.generation.device_generator import DeviceFedGenerator
from actors.generation.vllm_generator import VLLMGenerator
from cluster.processes.supervision import PROGRESS_GROUP

MAX_CONCURRENT_CALLS = 512  # coroutines of one generator; its engine queues what does not fit into a batch

_as_actor = ray.remote(max_concurrency=MAX_CONCURRENT_CALLS, concurrency_groups={PROGRESS_GROUP: 1})
GeneratorActor = _as_actor(VLLMGenerator)
DeviceFedGeneratorActor = _as_actor(DeviceFedGenerator)
AdapterGeneratorActor = _as_actor(AdapterGenerator)
