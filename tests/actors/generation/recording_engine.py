"""The part of `AsyncLLM` that generators use, without a model. It records what it is told, and answers as its test says."""

from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from actors.generation import vllm_generator


class NoReceiver:
    """In place of vLLM's weight-transfer engine: takes everything, and keeps nothing."""

    def parse_init_info(self, init_info: dict[str, Any]) -> dict[str, Any]:
        return init_info

    def init_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def shutdown(self) -> None: ...


class RecordingEngine:
    """What it is told of an update goes through vLLM's encoder to its receiver."""

    def __init__(
        self, receiver: Any = None, *, answer: Callable[[list[int], int], str] = lambda token_ids, number: "stop"
    ) -> None:
        """`answer(token_ids, n)`: the finish reason of the n-th request, or it raises."""
        self._receiver = receiver or NoReceiver()
        self._answer = answer
        self.label = "default"
        self.errored = False
        self.calls: list[str] = []  # but for requests
        self.init_infos: list[dict[str, Any]] = []
        self.update_infos: list[dict[str, Any]] = []
        self.asked: list[list[int]] = []  # token ids of every request
        self.model_config = SimpleNamespace(hf_config=SimpleNamespace(tie_word_embeddings=True))

    def install(self, monkeypatch: pytest.MonkeyPatch, shapes: dict[str, tuple[int, ...]]) -> None:
        """The next generator gets this engine. `shapes`: of the tensors in its model folder."""
        monkeypatch.setattr(vllm_generator, "_build_engine", lambda model_path, config, steps, **more: self.told(more))
        monkeypatch.setattr(vllm_generator, "folder_tensor_shapes", lambda folder: dict(shapes))
        monkeypatch.setattr(vllm_generator.os, "environ", {})

    def told(self, arguments: dict[str, Any]) -> Self:
        """`arguments`: what a kind of generator says to its engine besides the configuration."""
        self.arguments = arguments
        return self

    async def check_health(self) -> None:
        """Well."""

    async def generate(self, prompt: Any, parameters: Any, *, request_id: str, lora_request: Any = None) -> AsyncIterator[Any]:
        """One token, under the weights that it has."""
        number, token_ids = len(self.asked), prompt["prompt_token_ids"]
        self.asked.append(token_ids)
        output = SimpleNamespace(
            token_ids=[7],
            logprobs=[{7: SimpleNamespace(logprob=-1.0)}],
            text="x",
            finish_reason=self._answer(token_ids, number),
            weight_versions=[SimpleNamespace(version=self.label, start=0, end=1)],
        )
        yield SimpleNamespace(outputs=[output])

    async def init_weight_transfer_engine(self, request: Any) -> None:
        self.calls.append("init")
        self.init_infos.append(request.init_info)
        self._receiver.init_transfer_engine(self._receiver.parse_init_info(request.init_info))

    async def shutdown_weight_transfer_engine(self) -> None:
        self.calls.append("leave")
        self._receiver.shutdown()

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.calls.append(f"pause {mode}, {'clear' if clear_cache else 'keep'} the cache")

    async def start_weight_update(self) -> None:
        self.calls.append("start")

    async def update_weights(self, request: Any) -> None:
        self.calls.append("update")
        self.update_infos.append(MsgpackDecoder().decode(MsgpackEncoder().encode(request.update_info)))
        self._receiver.update_weights(self.update_infos[-1])

    async def finish_weight_update(self, *, weight_version: str) -> None:
        self.calls.append("finish")
        self.label = weight_version

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def sleep(self, *, level: int, mode: str) -> None:
        self.calls.append(f"sleep {level}, {mode}")

    async def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {', '.join(tags)}")

    async def get_weight_version(self) -> str:
        return self.label

    def shutdown(self, timeout: float) -> None:
        self.calls.append("shutdown")
