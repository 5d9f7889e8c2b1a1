"""Settings that runs share."""

from pydantic import Field

from cluster.config import StrictConfig

RUN_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class RunConfig(StrictConfig):
    """What every run has."""

    name: str = Field(pattern=RUN_NAME_PATTERN)
    """Name of the run directory."""
    runs_dir: str = "runs"
    """Folder of run directories. On a cluster, a folder that all machines share."""
    seed: int = Field(0, ge=0)
    """Every draw of a run derives from it."""
    stall_s: float = Field(300.0, gt=0)
    """When nothing has moved for so long, the run says what it waits for, and keeps the stacks of its processes in logs/."""


class RayRunConfig(RunConfig):
    """What a run has whose roles are Ray processes."""

    dashboard: bool = False
    """Ray's dashboard on loopback while the run lasts; its nine processes take CPU and memory from a small machine."""
    wait_for_nodes_s: float = Field(0.0, ge=0)
    """On a cluster that adds nodes when they are asked for, a run that is larger than the cluster asks for them, and waits so
    long. 0 refuses it at once. A cluster that is large enough but busy is waited for in any case."""


class ModelRunConfig(RayRunConfig):
    """What a run has that trains a language model."""

    model: str
    """smollm2-135m-instruct, tiny, a Hugging Face folder, or a hub name."""
