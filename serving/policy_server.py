"""One engine replica: Ray's LLM server, told which policy version it holds, and able to take a newer one without a stop."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.v1.engine.exceptions import EngineDeadError

from cluster.storage.serving_contract import ServingContract
from serving.engine.cpu_engine import CPUEngine
from serving.engine.engine_watch import EngineWatch
from serving.policy_folder import PolicyFolder, served_model
from serving.versions.contract_check import check_contract
from serving.versions.followed_versions import FollowedVersions, first_version
from serving.versions.follower import ChangeDeadlines, Follower
from serving.versions.open_replicas import IS_CHANGING, STATS_PERIOD_S
from serving.versions.policy_check import BadPolicyError, check_policy
from serving.versions.version_gate import VersionGate

STREAM_ERROR: Final = 'data: {"error"'  # how vLLM begins the event before a stream's early end
STATS_TIMEOUT_S: Final = 5 * STATS_PERIOD_S
PASSED_ON_S: Final = 0.5  # from the controller's question until every router has the answer; a turn of its loop takes 0.1 s


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """What answers a request: the first item of a response. Produced by `PolicyServer`, consumed by `PolicyIngress`."""

    policy_version: int | None  # None: the folder is no version of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowPlan:
    """A run to follow. Produced by `deployment`, consumed by `PolicyServer`."""

    versions: FollowedVersions
    has_neighbours: bool  # other replicas, which take requests while one changes
    deadlines: ChangeDeadlines


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost:
    """The engine is dead. Produced by `PolicyServer` in place of, or within, a response; consumed by `PolicyIngress`."""

    had_begun: bool  # whether the engine had taken this request
    has_crashed: bool = False  # rather than ended from outside
    was_alone: bool = False  # with this request


class PolicyServer(LLMServer):
    """Responses are Ray's, behind one `ServedBy` each: the version that sampled the response, whole.

    An engine's death is an item of its own, `EngineLost`: before `ServedBy` where the engine never took the request.
    """

    async def __init__(  # type: ignore[misc]  # as in the class below: Serve awaits it
        self, llm_config: LLMConfig, *, policy: PolicyFolder, follow: FollowPlan | None
    ) -> None:
        """`llm_config` names the folder of `policy`. `follow`: the run whose policies are taken instead, as they appear.

        Raises `BadPolicyError` for a policy that must not be served; of a run, Serve then starts the replica on another one.
        """
        self._model_id = llm_config.model_id
        self._engine_kwargs = llm_config.engine_kwargs
        self._is_changing = False
        self._stats_asked_for = asyncio.Event()
        self._has_neighbours = follow is not None and follow.has_neighbours
        self._following: asyncio.Task[None] | None = None
        started = None if follow is None else await asyncio.to_thread(first_version, follow.versions)
        if started is not None:
            policy = started.policy
            llm_config = loading_from(policy.path, llm_config)
        contract = await asyncio.to_thread(check_policy, policy.path, None)
        await super().__init__(llm_config, engine_cls=_engine_class(llm_config))
        self._gate = VersionGate(policy.policy_version)
        self._watch = EngineWatch(multiprocessing.active_children())
        if follow is None or started is None:
            await self.check(contract)
            return
        try:
            await self.check(contract)
        except BadPolicyError as error:
            follow.versions.note_set_aside(started, error.reason, str(error))
            raise
        follow.versions.note_served(started)
        model = await asyncio.to_thread(served_model, policy.path)
        follower = Follower(follow.versions, started, model, gate=self._gate, engine=self, deadlines=follow.deadlines)
        await follower.take_newest()
        self._following = asyncio.create_task(follower.follow())

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """`ServedBy`, then what Ray's server yields."""
        async for item in self._answer(super().chat, request, raw_request_info):
            yield item

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """`ServedBy`, then what Ray's server yields."""
        async for item in self._answer(super().completions, request, raw_request_info):
            yield item

    async def _answer(
        self, ask: Callable[[Any, Any], Awaitable[AsyncIterator[Any]]], request: Any, raw_request_info: Any
    ) -> AsyncIterator[Any]:
        async with self._gate.request() as policy_version:
            if await self._is_dead():
                yield EngineLost(had_begun=False)
                return
            yield ServedBy(policy_version=policy_version)
            with self._watch.request():
                try:
                    async for batch in await ask(request, raw_request_info):
                        item = refusal_in(batch) or batch
                        if is_stream_error(item) and await self._is_dead():
                            yield self._lost()
                            return
                        yield item
                except EngineDeadError:
                    yield self._lost()

    async def _is_dead(self) -> bool:
        try:
            await super().check_health()
        except EngineDeadError:
            return True
        return False

    def _lost(self) -> EngineLost:
        return EngineLost(had_begun=True, has_crashed=self._watch.crashed(), was_alone=self._watch.num_at_death() == 1)

    async def policy_version(self) -> int | None:
        """The version that new requests meet."""
        return self._gate.version

    async def check_health(self) -> None:
        """Raises where the engine is dead, or where a change of weights ended half-way; Serve then replaces this replica."""
        if self._following is not None and self._following.done():
            self._following.result()
        await super().check_health()

    async def load(self, files: Sequence[Path]) -> None:
        """Replace the weights of the engine, which has no requests."""
        await self.pause(mode="wait", clear_cache=True)  # the prefix cache belongs to the old weights
        await self.collective_rpc("start_weight_update")
        for path in files:
            await self.collective_rpc("update_weights", kwargs={"update_info": {"path": str(path)}})
        await self.collective_rpc("finish_weight_update")
        await self.resume()

    async def check(self, contract: ServingContract | None) -> None:
        """Raises `BadPolicyError` where the engine does not do what the contract says. No request of a client is inside."""
        if contract is not None:
            await check_contract(
                contract,
                super().completions,
                model_id=self._model_id,
                engine_dtype=self._engine_kwargs["dtype"],
                max_tokens=self._engine_kwargs["max_model_len"],
            )

    async def tell_routers(self, *, is_changing: bool) -> None:
        """Return when no more requests come, because they go to other replicas, or when some may come again."""
        self._is_changing = is_changing
        if not self._has_neighbours or self._following is None:  # nobody else would take them, or nobody sends any yet
            return
        self._stats_asked_for.clear()
        with suppress(TimeoutError):  # requests that come all the same wait at the gate
            async with asyncio.timeout(STATS_TIMEOUT_S):
                await self._stats_asked_for.wait()
            await asyncio.sleep(PASSED_ON_S)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Asked by Serve's controller, passed on to `OpenReplicasRouter`."""
        stats = {**await super().record_routing_stats(), IS_CHANGING: self._is_changing}
        self._stats_asked_for.set()
        return stats


def loading_from(folder: Path, llm_config: LLMConfig) -> LLMConfig:
    """The same settings for another folder. A copy would keep the engine's settings, which were made from the first one."""
    fields = {name: getattr(llm_config, name) for name in LLMConfig.model_fields}
    loading = llm_config.model_loading_config.model_copy(update={"model_source": str(folder)})
    return LLMConfig(**{**fields, "model_loading_config": loading})


def _engine_class(llm_config: LLMConfig) -> type[CPUEngine] | None:
    """None: Ray's own."""
    is_on_cpu = llm_config.accelerator_config.kind == "cpu"
    return CPUEngine if is_on_cpu and llm_config.engine_kwargs["tensor_parallel_size"] == 1 else None


def refusal_in(batch: Any) -> ErrorResponse | None:
    """Of a stream that the engine did not begin: Ray's server batches the refusal as if it were the stream's only event."""
    return batch[0] if isinstance(batch, list) and isinstance(batch[0], ErrorResponse) else None


def is_stream_error(item: Any) -> bool:
    """Whether an item of a stream, events that were ready together, holds the one before its early end."""
    return isinstance(item, list) and any(event.startswith(STREAM_ERROR) for event in item)
