"""Generators, devices and Ray's calls that are not there: real code at both ends of a link, and members that can be dropped.

A call runs when it is made. What it came to is read by `ray.wait`, `ray.get` and the future of a reference, as with Ray.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from torch.storage import TypedStorage
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine

from actors.config import GeneratorConfig
from actors.generation.device_generator import DeviceFedGenerator
from actors.generation.device_receiving import IPCReceiver, NCCLReceiver
from tests.actors.generation.recording_engine import RecordingEngine

RECEIVERS = {"nccl": NCCLReceiver, "ipc": IPCReceiver}


class Ref:
    """What Ray's reference to a call's outcome is."""

    def __init__(self, outcome: Any = None, *, hangs: bool = False) -> None:
        self.outcome, self.hangs = outcome, hangs

    def future(self) -> "Future[Any]":
        """Done, unless the call hangs."""
        future: Future[Any] = Future()
        if not self.hangs:
            if isinstance(self.outcome, BaseException):
                future.set_exception(self.outcome)
            else:
                future.set_result(self.outcome)
        return future


class FakeModel:
    """Keeps the tensors that an engine loads."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.tensors |= {name: tensor.clone() for name, tensor in weights}


def engine_that_keeps(model: FakeModel, backend: str) -> RecordingEngine:
    """An engine whose tensors go through vLLM's own receiver, on a CPU."""
    config = SimpleNamespace(parallel_config=None, model_config=None)
    receiver: Any = RECEIVERS[backend]  # a mix of our check and vLLM's engine, which mypy does not see
    return RecordingEngine(receiver(None, config, torch.device("cpu"), model))


class FakeHandle:
    """A Ray actor of a `DeviceFedGenerator`, run here."""

    def __init__(self, generator: DeviceFedGenerator, engine: RecordingEngine, model: FakeModel) -> None:
        self.engine, self.model, self._generator = engine, model, generator
        self.is_alive = True
        self.dies_in = self.hangs_in = ""

    def __getattr__(self, method: str) -> SimpleNamespace:
        call = SimpleNamespace(remote=lambda *arguments: self._call(method, arguments))
        return SimpleNamespace(remote=call.remote, options=lambda **_: call)

    def _call(self, method: str, arguments: Sequence[Any]) -> Ref:
        if method == self.dies_in:
            self.is_alive = False
        if not self.is_alive:
            return Ref(RayActorError())
        if method == self.hangs_in:
            return Ref(hangs=True)
        try:
            return Ref(asyncio.run(getattr(self._generator, method)(*arguments)))
        except Exception as error:  # noqa: BLE001 - Ray carries whatever a task raises
            return Ref(RayTaskError(method, "traceback", error))


class Transport:
    """Makes generators, and stands for the devices between them and the learner."""

    def __init__(self, backend: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.backend, self.shapes = backend, shapes
        self.handles: list[FakeHandle] = []
        self.groups: list[Any] = []  # init infos of process groups that the learner joined
        self.is_corrupting = False
        self.timeouts_s: list[float] = []  # of the waits for generators
        self._has_sent = threading.Event()
        self._sent: list[tuple[str, torch.Tensor]] = []
        self._memory: list[torch.Tensor] = []

    def start(self, name: str = "generator", *, num_workers: int = 1) -> FakeHandle:
        model = FakeModel()
        engine = engine_that_keeps(model, self.backend)
        config = GeneratorConfig(num_gpus=num_workers, tensor_parallel_size=num_workers, weight_transfer=self.backend)
        with pytest.MonkeyPatch.context() as patch:
            engine.install(patch, dict(self.shapes))
            self.handles.append(FakeHandle(DeviceFedGenerator("folder", config), engine, model))
        return self.handles[-1]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
        monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", self._join)
        monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", self._broadcast)
        monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_consumer", self._receive)
        monkeypatch.setattr(nccl_engine, "worker_init_process_group", lambda *_: SimpleNamespace(destroy=lambda: None))
        monkeypatch.setattr(ipc_engine, "reduce_tensor", self._share)
        monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", self._map)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0"))
        monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "get", _get)
        monkeypatch.setattr(ray, "kill", lambda handle: setattr(handle, "is_alive", False))
        monkeypatch.setattr(ray, "cancel", lambda ref: None)

    def _wait(self, refs: Sequence[Ref], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
        ready = [ref for ref in refs if not ref.hangs]
        assert ready or timeout is not None, "this would wait for ever"
        if timeout is not None:
            self.timeouts_s.append(timeout)
        return ready[:num_returns], [ref for ref in refs if ref not in ready[:num_returns]]

    def _join(self, init_info: Any) -> SimpleNamespace:
        self.groups.append(init_info)
        return SimpleNamespace(destroy=lambda: self.groups.append("left"))

    def _broadcast(self, *, iterator: Iterable[tuple[str, torch.Tensor]], **_: Any) -> None:
        self._sent = list(iterator)
        self._has_sent.set()

    def _receive(self, *, post_unpack_func: Callable[[list[tuple[str, torch.Tensor]]], None], **_: Any) -> None:
        assert self._has_sent.wait(10)
        post_unpack_func([(name, self._passed_on(tensor)) for name, tensor in self._sent])

    def _share(self, tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
        self._memory.append(tensor)
        place = (len(self._memory) - 1).to_bytes(8, "big")
        size, stride, storage = tensor.size(), tensor.stride(), (0, place, 64, 0, False, b"counter", 0, b"event", True)
        return None, (torch.Tensor, size, stride, 0, TypedStorage, tensor.dtype, *storage)

    def _map(self, *arguments: Any) -> torch.Tensor:
        shared = self._memory[int.from_bytes(arguments[7], "big")]
        assert (arguments[0], arguments[4]) == (torch.Tensor, TypedStorage)
        assert (arguments[1], arguments[2], arguments[5]) == (shared.size(), shared.stride(), shared.dtype)
        return self._passed_on(shared)

    def _passed_on(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 1 if self.is_corrupting else tensor


def _get(ref: Any, **_: Any) -> Any:
    outcome = ref.outcome if isinstance(ref, Ref) else ref
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
