"""Counts an engine's steps, by vLLM's interface for statistics. Needs vLLM at import."""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase


class StepCounter:
    """Its `logger` is a factory that vLLM calls once an engine."""

    def __init__(self) -> None:
        self.num_steps = 0  # that gave tokens

    def logger(self, vllm_config: VllmConfig, engine_index: int = 0) -> "StepLogger":
        return StepLogger(vllm_config, engine_index, counter=self)


class StepLogger(StatLoggerBase):
    """Told of each step. Uses nothing of what it is told: vLLM calls the records' fields unstable."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0, *, counter: StepCounter) -> None:
        self._counter = counter

    def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **named: Any) -> None:
        if iteration_stats is not None:
            self._counter.num_steps += 1

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
