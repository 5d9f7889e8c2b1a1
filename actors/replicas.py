"""How many actors of one kind a run has."""

from typing import Self

from pydantic import Field, model_validator

from cluster.config import StrictConfig


class ReplicasConfig(StrictConfig):
    """Of generators, or of one scorer."""

    num_replicas: int = Field(1, ge=1)
    """Ray actors that share the work, each with a model of its own."""
    max_replicas: int | None = Field(None, ge=1)
    """The run grows to so many between steps while the cluster has room, where a node joins, say. None: num_replicas."""

    @property
    def largest(self) -> int:
        """Replicas at most."""
        return self.num_replicas if self.max_replicas is None else self.max_replicas

    @model_validator(mode="after")
    def _most_are_not_fewer(self) -> Self:
        if self.largest < self.num_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is fewer than num_replicas={self.num_replicas}; raise it")
        return self
