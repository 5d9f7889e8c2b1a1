"""Large objects of a run: they stay where they were made, and the driver hands on where that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray import ObjectRef

from cluster.types import Stored

ValueT = TypeVar("ValueT", covariant=True)


@dataclass(frozen=True, slots=True)
class StoredObject(Stored[ValueT]):
    """An object in Ray's store, which goes once nobody holds this any more."""

    ref: "ObjectRef[ValueT]"

    def fetch(self) -> ValueT:
        """The object; arrays are read where they lie if that is this node. Raises Ray's error where it is lost."""
        return ray.get(self.ref)


def fetch_all(stored: Sequence[Stored[ValueT]]) -> list[ValueT]:
    """Several at once: what lies on other nodes comes side by side."""
    refs = [each.ref for each in stored if isinstance(each, StoredObject)]
    if refs:
        ray.wait(refs, num_returns=len(refs))
    return [each.fetch() for each in stored]
