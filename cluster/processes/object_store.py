"""Large objects of a run: they stay where they were made, and the driver hands on where that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError

from cluster.errors import SamplesLostError
from cluster.processes.losses import LOSSES, reason_of
from cluster.types import Stored

ValueT = TypeVar("ValueT", covariant=True)


@dataclass(frozen=True, slots=True)
class StoredObject(Stored[ValueT]):
    """An object in Ray's store, which goes once nobody holds this any more."""

    ref: "ObjectRef[ValueT]"

    def fetch(self) -> ValueT:
        """The object; arrays are read where they lie if that is this node. Raises `SamplesLostError` where it is lost."""
        try:
            return ray.get(self.ref)
        except (ObjectLostError, *LOSSES) as error:
            raise SamplesLostError(f"samples are lost with the node on which they lay: {reason_of(error)}") from error


@dataclass(frozen=True, slots=True)
class HeldObject(Stored[ValueT]):
    """An object that this process holds, whatever becomes of others."""

    value: ValueT

    def fetch(self) -> ValueT:
        """The object."""
        return self.value


def fetch_all(stored: Sequence[Stored[ValueT]]) -> list[ValueT]:
    """Several at once: what lies on other nodes comes side by side."""
    refs = [each.ref for each in stored if isinstance(each, StoredObject)]
    if refs:
        ray.wait(refs, num_returns=len(refs))
    return [each.fetch() for each in stored]
