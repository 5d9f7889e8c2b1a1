"""Settings of the endpoint."""

import ipaddress
from typing import Self

from pydantic import Field, field_validator, model_validator

from actors.config import DType, fast_dtype
from cluster.config import StrictConfig


class ServeConfig(StrictConfig):
    """`rayward serve`."""

    model: str
    """A policy folder (Hugging Face layout), or a run directory: then the newest complete `policies/v*` in it."""
    follow: bool = False
    """Take each newer policy of the run as it appears, without a stop; `model` is a run directory then."""
    model_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The name clients ask for; None is the run's name, or the folder's where it belongs to no run."""
    host: str = "127.0.0.1"
    """An IPv4 loopback address or localhost: there is no authentication yet."""
    port: int = Field(8000, ge=0, le=65535)
    """0 picks a free one."""
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
    feedback: str | None = None
    """SQLite file in which posted preferences are kept, made where it does not exist; None: the route does not exist."""
    dashboard: bool = False
    """Ray's dashboard on loopback while the endpoint is up; its processes take CPU and memory from a small machine."""

    @field_validator("host")
    @classmethod
    def _host_is_loopback(cls, host: str) -> str:
        if not _is_loopback(host):
            raise ValueError(f"host {host!r} is not loopback, and there is no authentication yet; use 127.0.0.1 and a tunnel")
        return host

    @model_validator(mode="after")
    def _devices_fit_the_split(self) -> Self:
        if self.tensor_parallel_size > 1 and self.num_gpus != self.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} needs as many GPUs a replica, but num_gpus={self.num_gpus:g}"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return host == "localhost"
