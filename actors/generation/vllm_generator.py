"""A generator that samples with vLLM. Log-probabilities are in nats, under the distribution that was sampled.

vLLM runs an engine process and worker processes of its own; this class only talks to them. vllm is imported where it runs.
"""

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from actors.config import GeneratorConfig, RunningRequests
from actors.generation.engine_process import spawned_lightly
from actors.generation.generator import INITIAL_CHECKSUM, Generated, GroupNumbers, HeldWeights
from actors.sources.tensor_shapes import TensorShapes, differing_tensors, folder_tensor_shapes, tensor_shapes
from cluster.errors import ActorLostError, ConfigError, DataError, RaywardError, WeightMismatchError
from cluster.host.cpu_engine import cpu_engine_environment
from cluster.processes.collector_pause import collector_paused
from cluster.processes.hosts.weights import weights_here
from cluster.seeding import derive_seed
from cluster.types import (
    Completion,
    FinishReason,
    GroupTexts,
    Prompt,
    PublishedWeights,
    SamplingParameters,
    Segment,
    Stretch,
    Trajectory,
    TrajectoryTokens,
    WeightFile,
    sample_of,
)

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor import Executor

    from actors.generation.step_counter import StepCounter

GIB_BYTES = 1 << 30
MIN_BATCHED_TOKENS = 2048  # of one CPU prefill step
PLUGIN_GROUP, SHM_PLUGIN = "vllm.general_plugins", "rayward_shm"
ENGINE_BACKENDS = {"shm": "shm", "nccl": "rayward_nccl", "ipc": "rayward_ipc"}  # vLLM's names, which the plugin registers
END_GRACE_S = 0.2  # for an idle engine to leave by itself, which takes it seconds and saves nothing
INITIAL_LABEL = "default"  # vLLM's label for the weights that it started with
TIED_HEAD = "lm_head.weight"  # tied embeddings are published once, as the input embedding
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
PAUSE_MODES: dict[RunningRequests, Literal["wait", "keep"]] = {"finish": "wait", "keep": "keep"}
SleepTag = Literal["weights", "kv_cache"]  # vLLM's names of what can wake by itself
PROBE = (0,)  # token ids that every vocabulary has


class RequestFailedError(RaywardError):
    """One request came to nothing; the engine goes on."""


class VLLMGenerator:
    """Implements `Generator`. To be used as an async Ray actor."""

    def __init__(self, model_path: str, config: GeneratorConfig, running_requests: RunningRequests = "finish") -> None:
        """`model_path`: a Hugging Face folder with safetensors weights. `running_requests`: what becomes of them when new weights
        come. Returns when the engine is up (20 to 40 s on CPU)."""
        os.environ.update(_process_environment(config))
        self._config = config
        self._running_requests = running_requests
        self._checksum = INITIAL_CHECKSUM
        self._request_numbers = itertools.count()
        self._publication = asyncio.Lock()  # one at a time
        self._asleep: set[SleepTag] = set()
        with collector_paused(), spawned_lightly():
            from actors.generation.step_counter import StepCounter

            self._steps = StepCounter()
            self._engine: AsyncLLM | None = _build_engine(model_path, config, self._steps, **self._engine_arguments())
        self._tensor_shapes = folder_tensor_shapes(Path(model_path))
        if self._engine.model_config.hf_config.tie_word_embeddings:
            self._tensor_shapes.pop(TIED_HEAD, None)

    async def ready(self) -> int:
        """The policy version, once the engine answers."""
        await self._running_engine().check_health()
        return (await self.held_weights()).policy_version

    async def generate(self, prompt: Prompt, sampling: SamplingParameters) -> Generated:
        """Sample i is a request of its own with its own seed; the prefix cache makes the shared prompt cheap.

        A request that fails while the engine lives costs its own trajectory. Where all of a prompt's do, the engine must answer
        another prompt, or it counts as lost.
        """
        longest = len(prompt.token_ids) + sampling.max_completion_tokens
        if longest > self._config.max_model_tokens:
            raise DataError(
                f"task {prompt.task.task_id!r}: {len(prompt.token_ids)} prompt tokens + {sampling.max_completion_tokens} for the "
                f"completion exceed generator.max_model_tokens={self._config.max_model_tokens}; raise it or shorten the prompt"
            )
        outcomes = await asyncio.gather(
            *(self._complete(prompt, sampling, index) for index in range(sampling.samples_per_prompt))
        )
        completed = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Sampled)]
        if not completed:
            await self._check_engine_answers(sampling)
        return Generated(
            numbers=GroupNumbers(
                samples=tuple(sample_of(index, each.tokens, each.completion.finish_reason) for index, each in completed),
                failures={
                    index: str(outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, RequestFailedError)
                },
            ),
            texts=GroupTexts(
                prompt=prompt,
                trajectories=tuple(
                    Trajectory(prompt=prompt, sample_index=index, completion=each.completion) for index, each in completed
                ),
            ),
            tokens=tuple(each.tokens for _, each in completed),
        )

    async def progress(self) -> int:
        """Engine steps that gave tokens, so far. Stands still where the engine does, although this actor lives."""
        return self._steps.num_steps

    async def load_weights(self, weights: PublishedWeights) -> int:
        """Take over published weights. Running requests finish on the old weights first, or rest and go on with the new ones.

        From another host they are fetched first, once for all generators of this one. What is not what was published is refused
        before the engine is touched. A failure after that leaves weights that
        nobody knows, so the engine is stopped and the actor must be replaced.
        """
        assert isinstance(weights, WeightFile), "other generators take what does not come as one file"
        async with self._publication:
            here = await asyncio.to_thread(self._checked, weights)
            try:
                await self._replace_weights(self._running_engine(), here)
            except Exception as error:
                await self.shutdown()
                raise ActorLostError(f"weights of version {weights.policy_version} did not arrive whole: {error!r}") from error
            self._checksum = weights.checksum
        return (await self.held_weights()).policy_version

    async def held_weights(self) -> HeldWeights:
        """The engine's own label of its weights, with the checksum of the file that they came from."""
        label = await self._running_engine().get_weight_version()
        return HeldWeights(policy_version=_version(label), checksum=self._checksum)

    async def sleep(self) -> None:
        """Leave the device to others, once running requests have finished. Nothing where the engine sleeps already."""
        assert self._config.sleep_level is not None, "the settings of shared devices have one"
        if "weights" in self._asleep:
            return
        if self._asleep:  # vLLM cannot put to sleep what is asleep
            await self.wake("kv_cache")
        await self._running_engine().sleep(level=self._config.sleep_level, mode="wait")
        self._asleep = {"weights", "kv_cache"}

    async def wake(self, tag: SleepTag) -> None:
        """Take back a part of the device. Nothing where it is awake. Requests are for when all is."""
        if tag in self._asleep:
            await self._running_engine().wake_up([tag])
            self._asleep.remove(tag)

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown, END_GRACE_S)

    def _engine_arguments(self) -> dict[str, Any]:
        """What the engine is told besides its configuration."""
        return {}

    def _running_engine(self) -> "AsyncLLM":
        if self._engine is None:
            raise ActorLostError("this generator's engine was stopped; replace the actor")
        return self._engine

    async def _complete(self, prompt: Prompt, sampling: SamplingParameters, sample_index: int) -> "Sampled | RequestFailedError":
        parameters = _sampling_params(sampling, derive_seed(sampling.seed, prompt.task.task_id, sample_index))
        try:
            return await self._sample(prompt, parameters)
        except RequestFailedError as error:
            return error

    async def _sample(self, prompt: Prompt, parameters: "SamplingParams") -> "Sampled":
        """One completion, with the weights that the engine says have sampled it."""
        output = await self._finished_output(prompt.token_ids, parameters)
        spans = output.outputs[0].weight_versions or ()
        return sampled(
            prompt,
            output.outputs[0],
            tuple(Stretch(num_tokens=span.end - span.start, policy_version=_version(span.version)) for span in spans),
        )

    async def _check_engine_answers(self, sampling: SamplingParameters) -> None:
        """Raise `ActorLostError` unless a request for one token succeeds, sampled like those that failed."""
        parameters = _sampling_params(replace(sampling, max_completion_tokens=1), sampling.seed)
        try:
            await self._finished_output(PROBE, parameters)
        except RequestFailedError as error:
            raise ActorLostError(f"its engine fails every request: {error}") from error

    async def _finished_output(
        self, token_ids: Sequence[int], parameters: "SamplingParams", adapter: "LoRARequest | None" = None
    ) -> "RequestOutput":
        """Run one request to its end; the parameters ask for the final output only.

        Raises `RequestFailedError` where the engine lives, `ActorLostError` where it does not.
        """
        from vllm.exceptions import VLLMError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        engine, last = self._running_engine(), None
        request_id = str(next(self._request_numbers))
        try:
            async for output in engine.generate(
                TokensPrompt(prompt_token_ids=list(token_ids)), parameters, request_id=request_id, lora_request=adapter
            ):
                last = output
        except VLLMError as error:
            reason = repr(error.__cause__ or error)  # an EngineGenerateError has its cause alone
            if isinstance(error, EngineDeadError) or engine.errored:
                raise ActorLostError(f"its engine has died: {reason}") from error
            raise RequestFailedError(f"its request failed: {reason}") from error
        assert last is not None, "vLLM ends every request with an output"
        if last.outputs[0].finish_reason not in FINISH_REASONS:
            raise RequestFailedError(f"its request failed: vLLM ended it with {last.outputs[0].finish_reason!r}")
        return last

    def _checked(self, weights: WeightFile) -> WeightFile:
        """In a file of this host."""
        here = weights_here(weights)
        self._check_shapes(tensor_shapes(Path(here.path)), here.path)
        return here

    def _check_shapes(self, shapes: TensorShapes, source: str) -> None:
        differing = differing_tensors(shapes, self._tensor_shapes)
        if differing:  # vLLM would keep old values, or memory that nobody wrote, for whatever is missing
            raise WeightMismatchError(
                f"{source} does not hold this model's tensors: {len(differing)} are missing, unknown or of another shape, "
                f"first {differing[:3]}; the generator keeps its weights"
            )

    async def _pause(self, engine: "AsyncLLM") -> None:
        """The cache belongs to the old weights: it is dropped, and what requests that are kept have of it is computed anew."""
        await engine.pause_generation(mode=PAUSE_MODES[self._running_requests], clear_cache=True)

    async def _replace_weights(self, engine: "AsyncLLM", weights: WeightFile) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        takes_requests = not self._asleep  # once its cache wakes, it does again
        if takes_requests:
            await self._pause(engine)
        await engine.start_weight_update()
        await engine.update_weights(WeightTransferUpdateRequest(update_info={"path": weights.path}))
        await engine.finish_weight_update(weight_version=str(weights.policy_version))
        if takes_requests:
            await engine.resume_generation()


def _process_environment(config: GeneratorConfig) -> dict[str, str]:
    """What vLLM reads from the environment, at its import and in its processes."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    if config.devices == "any_node":  # vLLM says it itself, but for where somebody has set how it starts processes
        import ray

        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    if config.num_gpus:
        return environment
    return environment | cpu_engine_environment(config.num_threads, eager=config.enforce_eager)


def _build_engine(model_path: str, config: GeneratorConfig, steps: "StepCounter", **more: Any) -> "AsyncLLM":
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.plugins import load_plugins_by_group
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    if SHM_PLUGIN not in load_plugins_by_group(PLUGIN_GROUP):
        raise ConfigError(
            f"vLLM does not find the plugin {SHM_PLUGIN!r}; install this package (pip install -e .), and name the plugin in "
            "VLLM_PLUGINS if that variable is set"
        )
    arguments = AsyncEngineArgs(
        model=model_path,
        dtype=config.dtype,
        max_model_len=config.max_model_tokens,
        max_num_seqs=config.max_num_sequences,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend=_executor(config),
        enforce_eager=config.enforce_eager,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=ENGINE_BACKENDS[config.weight_transfer]),
        disable_log_stats=True,
        enable_sleep_mode=config.sleep_level is not None,
        **_device_arguments(config),
        **more,
    )
    settings = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    if config.devices == "one_node":
        settings.parallel_config.placement_group = None  # the actor's own, for which the engine process would import Ray
    return AsyncLLM.from_vllm_config(settings, stat_loggers=[steps.logger], disable_log_stats=arguments.disable_log_stats)


def _executor(config: GeneratorConfig) -> "str | type[Executor]":
    """How an engine reaches its workers; left to itself, vLLM would pick ray inside an actor."""
    if config.devices == "any_node":
        return "ray"  # its workers take the devices of the actor's placement group
    if config.tensor_parallel_size > 1:
        return "mp"
    # By name, "uni" becomes "mp" on CPU, and the engine process then spins on a core that the worker's threads need.
    from vllm.v1.executor import UniProcExecutor

    return UniProcExecutor


def _device_arguments(config: GeneratorConfig) -> dict[str, Any]:
    if config.num_gpus:
        return {"gpu_memory_utilization": config.gpu_memory_utilization}
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB only, and it would win over kv_cache_memory_bytes
    return {
        "kv_cache_memory_bytes": int(config.kv_cache_gib * GIB_BYTES),
        # A seeded request whose prompt is prefilled in chunks kills a CPU engine ("CPU Generator does not use offset").
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(MIN_BATCHED_TOKENS, config.max_model_tokens),
    }


def _sampling_params(sampling: SamplingParameters, seed: int) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_completion_tokens,
        seed=seed,
        logprobs=0,  # the sampled token's only
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


class Sampled(NamedTuple):
    """One completion, for those who read it and for the learner."""

    completion: Completion
    tokens: TrajectoryTokens


def sampled(prompt: Prompt, output: "CompletionOutput", stretches: tuple[Stretch, ...]) -> Sampled:
    """`stretches`: which weights sampled the tokens."""
    if not stretches or output.logprobs is None:
        raise RaywardError(
            f"task {prompt.task.task_id!r}: vLLM does not say which weights sampled, or how likely its tokens were"
        )
    token_ids = np.array(output.token_ids, np.int32)
    logprobs = [each[token_id].logprob for token_id, each in zip(output.token_ids, output.logprobs, strict=True)]
    segment = Segment(
        token_ids=np.concatenate([np.array(prompt.token_ids, np.int32), token_ids]),
        action_mask=np.arange(len(prompt.token_ids) + len(token_ids)) >= len(prompt.token_ids),
        rollout_logprobs=np.array(logprobs, np.float32),
        stretches=stretches,
    )
    return Sampled(
        completion=Completion(token_ids=token_ids, text=output.text, finish_reason=FINISH_REASONS[str(output.finish_reason)]),
        tokens=TrajectoryTokens(segments=(segment,)),
    )


def _version(label: str) -> int:
    return 0 if label == INITIAL_LABEL else int(label)
