"""A vLLM generator whose new weights are low-rank adapters. The weights of the model itself never change."""

import asyncio
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.config import GeneratorConfig, RunningRequests
from actors.generation.generator import INITIAL_CHECKSUM, HeldWeights
from actors.generation.vllm_generator import RequestFailedError, Sampled, VLLMGenerator, sampled
from cluster.errors import ActorLostError, WeightMismatchError
from cluster.processes.hosts.weights import weights_here
from cluster.storage.policy_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from cluster.types import AdapterFile, AdapterProbe, Prompt, PublishedWeights, Stretch

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

NUM_ASKED_FOR = 8  # of the likeliest tokens after a context


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSlots:
    """What an engine keeps room for. Produced by `learners.run.composition`, consumed by `AdapterGenerator`."""

    max_rank: int
    num_adapters: int  # at the same time: the newest, one that is to replace it, and older ones that requests began with


@dataclass(slots=True, kw_only=True)
class LoadedAdapter:
    """One in the engine. Owned by an `AdapterGenerator`."""

    policy_version: int
    checksum: str
    request: "LoRARequest"  # how vLLM calls it
    num_running: int = field(default=0)  # requests that sample with it


class AdapterGenerator(VLLMGenerator):
    """Implements `Generator`. To be used as an async Ray actor.

    A request keeps the adapter that it began with, and new ones take the newest. So a publication waits for no request, and no
    completion has tokens of two versions.
    """

    def __init__(self, model_path: str, config: GeneratorConfig, running_requests: RunningRequests, slots: AdapterSlots) -> None:
        self._slots = slots
        self._loaded: list[LoadedAdapter] = []  # oldest first; requests begin with the last
        self._adapter_numbers = itertools.count(1)  # a folder may be written again under the same name
        self._request_ended = asyncio.Event()
        super().__init__(model_path, config, running_requests)

    async def load_weights(self, weights: PublishedWeights) -> int:
        """Sample with a published adapter from here on; returns its policy version.

        Raises `WeightMismatchError` where the folder is not what was published, or where the engine's log-probabilities with it
        are not the learner's. The generator then keeps the adapter that it has.
        """
        assert isinstance(weights, AdapterFile), "a generator of adapters gets adapters"
        async with self._publication:
            here = await asyncio.to_thread(weights_here, weights.weights)
            await self._make_room()
            adapter = await self._load(weights, Path(here.path))
            try:
                await self._check(adapter, weights.probe)
            except WeightMismatchError:
                await self._unload(adapter)
                raise
            self._loaded.append(adapter)
        return adapter.policy_version

    async def held_weights(self) -> HeldWeights:
        """Of the newest adapter; before the first, of the model itself."""
        self._running_engine()
        if not self._loaded:
            return HeldWeights(policy_version=0, checksum=INITIAL_CHECKSUM)
        newest = self._loaded[-1]
        return HeldWeights(policy_version=newest.policy_version, checksum=newest.checksum)

    def _engine_arguments(self) -> dict[str, Any]:
        return {
            "enable_lora": True,
            "max_lora_rank": self._slots.max_rank,
            "max_loras": self._slots.num_adapters,
            "max_cpu_loras": self._slots.num_adapters,
        }

    async def _sample(self, prompt: Prompt, parameters: "SamplingParams") -> Sampled:
        if not self._loaded:
            return await super()._sample(prompt, parameters)
        adapter = self._loaded[-1]
        adapter.num_running += 1
        try:
            output = (await self._finished_output(prompt.token_ids, parameters, adapter.request)).outputs[0]
        finally:
            adapter.num_running -= 1
            self._request_ended.set()
        return sampled(prompt, output, (Stretch(num_tokens=len(output.token_ids), policy_version=adapter.policy_version),))

    async def _make_room(self) -> None:
        """Drop adapters that nothing samples with any more; wait for such a one where the engine has no room otherwise.

        Left to itself, vLLM would drop the one that was used least recently, and read its folder again for the next step.
        """
        while True:
            for adapter in [each for each in self._loaded[:-1] if not each.num_running]:
                await self._unload(adapter)
                self._loaded.remove(adapter)
            if len(self._loaded) < self._slots.num_adapters:
                return
            self._request_ended.clear()
            await self._request_ended.wait()

    async def _load(self, weights: AdapterFile, file: Path) -> LoadedAdapter:
        """`file`: the tensors, on this host. vLLM takes folders, which this one makes of the file and keeps for as long."""
        from vllm.lora.request import LoRARequest

        number = next(self._adapter_numbers)  # vLLM takes what has an old name, number or folder for the old adapter
        folder = file.parent / f"adapter-{os.getpid()}-{number}"
        folder.mkdir()
        os.link(file, folder / ADAPTER_WEIGHTS)  # the file itself goes with the next version
        (folder / ADAPTER_CONFIG).write_text(weights.config, encoding="utf-8")
        request = LoRARequest(f"v{weights.policy_version}-{number}", number, str(folder))
        try:
            await self._running_engine().add_lora(request)
        except Exception as error:
            await self.shutdown()
            raise ActorLostError(f"the adapter of version {weights.policy_version} was not loaded: {error!r}") from error
        return LoadedAdapter(policy_version=weights.policy_version, checksum=weights.checksum, request=request)

    async def _unload(self, adapter: LoadedAdapter) -> None:
        await self._running_engine().remove_lora(adapter.request.lora_int_id)
        shutil.rmtree(adapter.request.lora_path, ignore_errors=True)

    async def _check(self, adapter: LoadedAdapter, probe: AdapterProbe) -> None:
        """Raise `WeightMismatchError` unless the engine samples with the adapter, as the learner does."""
        try:
            found = await asyncio.gather(*(self._next_logprobs(context, adapter.request) for context in probe.contexts))
        except RequestFailedError as error:
            raise ActorLostError(f"its engine fails with the adapter of version {adapter.policy_version}: {error}") from error
        problem = adapter_problem(probe, found)
        if problem:
            raise WeightMismatchError(f"adapter of version {adapter.policy_version}: {problem}")

    async def _next_logprobs(self, context: Sequence[int], adapter: "LoRARequest") -> dict[int, float]:
        """Of the likeliest tokens after a context, in nats at temperature 1.

        Those of a prompt's own tokens would kill the engine: with adapters, vLLM 0.32 computes them for as many rows as there are
        requests in the batch.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=NUM_ASKED_FOR, output_kind=RequestOutputKind.FINAL_ONLY
        )
        output = await self._finished_output(context, parameters, adapter)
        assert output.outputs[0].logprobs is not None, "they were asked for"
        return {token: each.logprob for token, each in output.outputs[0].logprobs[0].items()}


def adapter_problem(probe: AdapterProbe, likely: Sequence[Mapping[int, float]]) -> str:
    """Why an engine that finds these tokens likely after the probe's contexts does not sample as the learner does; or nothing.

    What it finds without the adapter is not asked for: beside requests with one, vLLM's CPU engine gives a request without any
    that of its last slot. The learner knows it.
    """
    found = [
        (ours, theirs[token], start[token])
        for numbers, theirs, start in zip(likely, probe.logprobs, probe.start_logprobs, strict=True)
        for token, ours in numbers.items()
        if token in theirs
    ]
    if not found:
        return "the tokens that the engine finds likely are none that the learner does"
    mean = sum(abs(ours - theirs) for ours, theirs, _ in found) / len(found)
    if not mean <= probe.max_mismatch:  # also where it is not a number
        return (
            f"engine and learner disagree about log-probabilities by {mean:.3g} nats a token on average, more than "
            f"learner.mismatch.max_logprob_mismatch={probe.max_mismatch:g}; the generator keeps the adapter before it"
        )
    moved = sum(abs(theirs - start) for _, theirs, start in found) / len(found)
    from_start = sum(abs(ours - start) for ours, _, start in found) / len(found)
    if from_start < moved / 2:
        return (
            f"it moves the learner's log-probabilities by {moved:.3g} nats on average, and the engine's by {from_start:.3g}: it "
            "samples without the adapter; check that vLLM adapts the model's matrices in learner.lora.target_modules"
        )
    return ""
