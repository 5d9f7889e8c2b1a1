"""Settings of the endpoint."""

import ipaddress
import re
from typing import Any, Final, Self

from pydantic import Field, field_validator, model_validator

from actors.config import DType, fast_dtype
from cluster.config import StrictConfig

STREAMS_OF_CPU_REPLICA: Final = 4
ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")


class BodyLimits(StrictConfig):
    """The size of a request, whatever it asks for."""

    max_body_bytes: int = Field(2**20, ge=1024, le=2**26)
    """Size of a request's body; a larger one is refused (413) before it is held in memory."""
    max_header_bytes: int = Field(2**14, ge=1024, le=2**16)
    """Names and values of a request's headers together; more is refused (431)."""
    body_timeout_s: float = Field(10.0, gt=0)
    """Wall time in which the whole body must arrive (408)."""


class RequestLimits(BodyLimits):
    """What one request may ask for. A request beyond a limit gets an error that names the field and the limit."""

    max_messages: int = Field(256, ge=1)
    """Messages of a chat request."""
    max_prompts: int = Field(32, ge=1)
    """Prompts of a completion request."""
    max_samples: int = Field(8, ge=1)
    """Completions of one prompt, `n`."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Cap on `max_tokens`, also for a request that names none; None: what `max_model_tokens` leaves."""
    max_stops: int = Field(4, ge=0)
    """Stop strings."""
    max_logprobs: int = Field(20, ge=0)
    """Alternatives listed for each token, `logprobs` and `top_logprobs`."""
    max_logit_bias: int = Field(300, ge=0)
    """Tokens that `logit_bias` names."""
    max_tools: int = Field(32, ge=1)
    """Functions in `tools`, where a `tool_parser` is set."""


class KeyQuota(StrictConfig):
    """What each key may use. Counts in one process, whatever the number of replicas."""

    requests_per_minute: int = Field(600, ge=1)
    """Counted when a request comes, whatever becomes of it."""
    tokens_per_minute: int = Field(1_000_000, ge=1)
    """Counted when a request comes: the most that it can use, prompts and completions together."""
    max_streams: int = Field(16, ge=1)
    """Requests in progress, streamed or not. A policy on CPUs has 4 for each replica unless this is set: beside so many a request
    of another key takes 1.5 times as long, beside 8 2.5 times."""


class ListenConfig(StrictConfig):
    """Where an endpoint listens, and to whom."""

    host: str = "127.0.0.1"
    """An IPv4 address or localhost. Any other than loopback needs a file of keys."""
    port: int = Field(8000, ge=0, le=65535)
    """0 picks a free one."""
    keys: str | None = None
    """File of keys (`rayward keys add`). None: none is asked for on loopback, and elsewhere the default file is used."""
    quota: KeyQuota = KeyQuota()
    """Only where keys are asked for."""

    @field_validator("host")
    @classmethod
    def _host_is_an_address(cls, host: str) -> str:
        if host != "localhost":
            try:
                ipaddress.IPv4Address(host)
            except ValueError:
                raise ValueError(f"host {host!r} is not an IPv4 address of this machine; use 127.0.0.1 or 0.0.0.0") from None
        return host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host == "localhost" or ipaddress.IPv4Address(self.host).is_loopback


class ServeConfig(ListenConfig):
    """`rayward serve`."""

    model: str
    """A policy folder (Hugging Face layout), or a run directory: then the newest complete `policies/v*` in it."""
    follow: bool = False
    """Take each newer policy of the run as it appears, without a stop; `model` is a run directory then."""
    model_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The name clients ask for; None is the run's name, or the folder's where it belongs to no run."""
    num_replicas: int = Field(1, ge=1)
    """Engines, each with a copy of the policy."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for each replica; the front door and the proxy reserve none."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that each replica holds, `tensor_parallel_size` of them or a share of one; 0 runs vLLM's CPU build."""
    num_threads: int = Field(2, ge=1)
    """OpenMP threads of a CPU engine."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Devices over which one replica splits the model."""
    dtype: DType = Field(default_factory=fast_dtype)
    """bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    max_model_tokens: int = Field(512, ge=2)
    """Longest prompt + completion; a request beyond it is answered 400."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for the key-value cache of a CPU engine."""
    gpu_memory_utilization: float = Field(0.8, gt=0, lt=1)
    """Share of a GPU's memory that an engine takes."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that one replica works on at the same time."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that wait for a free replica; the next one is refused with 429 at once."""
    request_timeout_s: float = Field(300.0, gt=0)
    """Wall time after which an unanswered request is cancelled."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Wall time until the first replica must answer."""
    limits: RequestLimits = RequestLimits()
    cors_origins: tuple[str, ...] = ()
    """Web pages that may call the endpoint from a browser, such as https://chat.example.org; `*` is not taken."""
    tool_parser: str | None = Field(None, pattern=r"^[a-z0-9_]{1,64}$")
    """vLLM's parser of this model's tool calls, such as hermes; None: a request with `tools` is refused."""
    reasoning_parser: str | None = Field(None, pattern=r"^[a-z0-9_]{1,64}$")
    """vLLM's parser of this model's reasoning, such as qwen3; None: reasoning is part of the content."""
    state_dir: str | None = None
    """Folder for the log of requests and the digests of refused ones. None: a folder of `model_id` in the cache."""
    drain_timeout_s: float = Field(60.0, gt=0)
    """Wall time that requests in progress have to end when the endpoint stops; no more than `request_timeout_s` is waited."""
    feedback: str | None = None
    """SQLite file in which posted preferences are kept, made where it does not exist; None: the route does not exist."""
    dashboard: bool = False
    """Ray's dashboard on loopback while the endpoint is up; its processes take CPU and memory from a small machine."""

    @model_validator(mode="before")
    @classmethod
    def _quota_follows_the_device(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("num_gpus"):
            return values
        num_replicas, quota = values.get("num_replicas", 1), values.get("quota", {})
        if isinstance(quota, KeyQuota):
            quota = quota.model_dump(exclude_unset=True)
        if not (isinstance(quota, dict) and isinstance(num_replicas, int)):  # what these are instead is refused by the fields
            return values
        return {**values, "quota": {"max_streams": STREAMS_OF_CPU_REPLICA * num_replicas, **quota}}

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_named(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; write it as https://chat.example.org or http://localhost:3000")
        return origins

    @model_validator(mode="after")
    def _devices_fit_the_split(self) -> Self:
        if self.tensor_parallel_size > 1 and self.num_gpus != self.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} needs as many GPUs a replica, but num_gpus={self.num_gpus:g}"
            )
        return self

    @property
    def num_engine_places(self) -> int:
        """Requests that engines work on at the same time, and those that wait for one."""
        return self.max_ongoing_requests * self.num_replicas + self.max_queued_requests

    @property
    def drain_s(self) -> float:
        """How long a replica that is told to end may work on the requests that it has."""
        return min(self.drain_timeout_s, self.request_timeout_s)
