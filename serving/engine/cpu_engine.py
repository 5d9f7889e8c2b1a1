"""Ray's vLLM engine, with its one CPU worker inside the engine's process.

Ray Serve LLM asks for the executor "mp" on CPUs, whatever `engine_kwargs` says (`VLLMEngineConfig.get_initialization_kwargs`, ray
2.60). The engine's process then spins on the core that the worker's threads need, one step after the other.
"""

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import (
    VLLMEngine,  # `LLMServer` takes engine classes, and ray.serve.llm has none
)
from vllm.v1.executor import UniProcExecutor


class CPUEngine(VLLMEngine):
    """For engines of one worker."""

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        vllm_engine_config.parallel_config.distributed_executor_backend = UniProcExecutor
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
