"""A real endpoint of the tiny model behind keys, with another's application beside it, for tests that hurt it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from actors.sources.models import resolve_model
from cluster.processes.runtime import ray_session
from serving.app import APP_NAME, ServedPolicy, serve_policy
from serving.config import KeyQuota, ServeConfig
from serving.guard import proxy
from serving.guard.keys.key_file import add_key

ENGINE = "VLLM::EngineCore"
DOORS = ("ProxyActor", "PolicyIngress")
START_TIMEOUT_S = 500.0
GOOD = {"model": "tiny", "prompt": "good", "max_tokens": 2}


class Endpoint:
    """Replicas behind keys on a Ray that is not the endpoint's own."""

    def __init__(self, folder: Path, session_logs: Path, *, num_replicas: int) -> None:
        self.session_logs = session_logs
        self._num_replicas = num_replicas
        self.state_dir = folder / "state"
        self.key_file = folder / "keys.json"
        self.key, self.other_key = (add_key(self.key_file, name) for name in ("first", "second"))
        config = ServeConfig(
            model=resolve_model("tiny"),
            model_id="tiny",
            port=0,
            num_replicas=num_replicas,
            num_cpus=1 / num_replicas,
            num_threads=1,
            max_model_tokens=128,
            kv_cache_gib=0.1,
            dtype="float32",
            keys=str(self.key_file),
            quota=KeyQuota(requests_per_minute=100_000, tokens_per_minute=10**9),
            state_dir=str(self.state_dir),
        )
        self.served: ServedPolicy = serve_policy(config)
        serve.run(Other.bind(), name="other", route_prefix="/other")  # type: ignore[attr-defined]  # the decorator's
        self.served.wait_ready(timeout_s=START_TIMEOUT_S)
        self.wait_until_whole()
        self.client = self.client_of(self.key)

    def client_of(self, key: str, *, timeout_s: float = START_TIMEOUT_S) -> httpx.Client:
        return httpx.Client(base_url=self.served.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)

    def wait_until_whole(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(self.engines()) < self._num_replicas or not self._is_running():
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.2)

    def engines(self) -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if title_of(process).startswith(ENGINE)]

    def door_mib(self) -> float:
        """Resident memory of the proxy and the front doors."""
        titles = ((process, title_of(process)) for process in psutil.Process().children(recursive=True))
        return sum(process.memory_info().rss for process, title in titles if any(door in title for door in DOORS)) / 2**20

    def good_is_answered(self) -> bool:
        return self.client.post("/v1/completions", json=GOOD).status_code == 200

    def _is_running(self) -> bool:
        application = serve.status().applications.get(APP_NAME)
        states = [dict(one.replica_states) for one in application.deployments.values()] if application else []
        return bool(states) and all(state == {"RUNNING": self._num_replicas} for state in states)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    """Somebody else's application on the same Serve."""

    async def __call__(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("still here")


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running_endpoint(folder: Path, *, num_replicas: int) -> Iterator[Endpoint]:
    """On a Ray of its own with two CPUs."""
    config = ServeConfig(model="tiny", num_replicas=num_replicas)
    proxy.arrange(os.environ, proxy.ProxyLimits(num_engine_places=config.num_engine_places))
    with ray_session(num_cpus=2, include_dashboard=False) as session:
        endpoint = Endpoint(folder, session.session_logs, num_replicas=num_replicas)
        try:
            yield endpoint
        finally:
            endpoint.served.stop()
            serve.shutdown()
