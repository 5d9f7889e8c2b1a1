"""What a replica tells its engine, and the routers of requests, around a change of weights. No engine."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from serving import policy_server
from serving.policy_server import PolicyServer, loading_from
from serving.versions.open_replicas import IS_CHANGING
from tests.serving.small_policies import write_small_policy


class Recording(PolicyServer):
    """Its `__init__` would start an engine, so it is made without."""

    calls: list[Any]

    def __del__(self) -> None:
        """Ray's is a coroutine, which nothing awaits without Serve."""

    async def pause(self, *arguments: Any, **settings: Any) -> None:
        self.calls.append(("pause", settings))

    async def resume(self, *arguments: Any, **settings: Any) -> None:
        self.calls.append("resume")

    async def collective_rpc(self, method: str, *arguments: Any, **settings: Any) -> None:
        self.calls.append((method, settings["kwargs"]["update_info"]) if settings else method)


@pytest.fixture
def server() -> Recording:
    server = object.__new__(Recording)
    server.calls = []
    server._is_changing, server._has_neighbours, server._following = False, False, None
    server._stats_asked_for = asyncio.Event()
    return server


def test_a_replica_can_start_on_another_folder_than_its_endpoint_did(tmp_path: Path) -> None:
    folders = [write_small_policy(tmp_path / name) for name in ("v000001", "v000002")]
    first = LLMConfig(
        model_loading_config={"model_id": "run", "model_source": str(folders[0])}, engine_kwargs={"dtype": "float32"}
    )
    assert first.get_engine_config().hf_model_id == str(folders[0])  # as `build_llm_deployment` has it made
    other = loading_from(folders[1], first)
    assert (other.model_id, other.engine_kwargs["dtype"]) == ("run", "float32")
    assert other.get_engine_config().hf_model_id == str(folders[1])


def test_weights_are_replaced_while_no_request_runs(server: Recording) -> None:
    asyncio.run(server.load([Path("a"), Path("b")]))
    files = [("update_weights", {"path": name}) for name in ("a", "b")]
    paused = ("pause", {"mode": "wait", "clear_cache": True})
    assert server.calls == [paused, "start_weight_update", *files, "finish_weight_update", "resume"]


def test_a_replica_shuts_once_the_routers_have_been_told(server: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_stats_of_an_engine(_: LLMServer) -> dict[str, Any]:
        return {"of_ray": 1}

    async def scenario() -> None:
        server._has_neighbours, server._following = True, asyncio.current_task()
        telling = asyncio.create_task(server.tell_routers(is_changing=True))
        for _ in range(3):
            await asyncio.sleep(0)
            assert not telling.done()
        assert await server.record_routing_stats() == {"of_ray": 1, IS_CHANGING: True}
        async with asyncio.timeout(10):
            await telling

    monkeypatch.setattr(policy_server, "PASSED_ON_S", 0.0)
    monkeypatch.setattr(LLMServer, "record_routing_stats", no_stats_of_an_engine)
    asyncio.run(scenario())


def test_a_replica_that_is_alone_tells_nobody(server: Recording) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(policy_server.STATS_TIMEOUT_S / 2):
            await server.tell_routers(is_changing=True)

    asyncio.run(scenario())
