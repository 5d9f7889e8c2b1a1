"""Published weights on every host of a cluster.

The learner writes one file, in shared memory of its own host, where generators map it. A generator on another host fetches it in
pieces through Ray's object store, once for all generators there, into shared memory of that host. So one way serves one machine
and many, and a host that joins later, or a generator that is replaced on another host, finds the newest version like any other.
No object of Ray holds more than a piece, and whoever fetches owns it: the end of the process that wrote the file loses nothing.
"""

import fcntl
import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ConfigError, WeightMismatchError, WeightsLostError
from cluster.processes.hosts.folder import host_folder, this_node
from cluster.processes.losses import reason_of
from cluster.processes.placement import check_shared_memory
from cluster.storage.atomic_file import write_atomically
from cluster.storage.weight_file import check_weights, remove_earlier_versions, seal_weights, stamp_of
from cluster.types import FileStamp, WeightFile

PIECE_BYTES = 1 << 26
PIECES_IN_FLIGHT = 2  # one is written while the next one travels
LOST_PAUSE_S = 1.0  # before it is told that weights are lost: whoever is told will ask again, until there are newer ones


def weights_here(weights: WeightFile) -> WeightFile:
    """The same weights in a file of this host, which holds the bytes that were published.

    Raises `WeightsLostError` where they cannot be had any more, `WeightMismatchError` where other bytes came.
    """
    try:
        here = weights if weights.node_id == this_node() else _copy(weights)
        check_weights(here)
    except WeightsLostError:
        time.sleep(LOST_PAUSE_S)
        raise
    return here


def check_shared_memory_of_nodes(needed_bytes: int, folder: Path) -> None:
    """As `check_shared_memory`, on every living node that has CPUs for a role. Raises `ConfigError` with one line a node."""
    look = ray.remote(num_cpus=0)(_shared_memory_problem)
    asked = [
        (node["NodeManagerHostname"], look.options(scheduling_strategy=_on(node["NodeID"])).remote(needed_bytes, folder))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    problems = [f"{host}: {problem}" for host, ref in asked if (problem := ray.get(ref))]
    if problems:
        raise ConfigError(problems)


def _shared_memory_problem(needed_bytes: int, folder: Path) -> str:
    try:
        check_shared_memory(needed_bytes, folder)
    except ConfigError as error:
        return str(error)
    return ""


def _copy(weights: WeightFile) -> WeightFile:
    """Fetched now, or by another generator of this host before."""
    folder = host_folder(Path(weights.path).parents[1])
    path = folder / f"policy-v{weights.policy_version:06d}-{weights.checksum[:16]}.safetensors"
    record = path.with_suffix(".json")
    with _alone(folder):
        copy = _recorded(record)
        if copy is None:
            started_s = time.time()
            copy = _fetched(weights, path)
            write_atomically(record, json.dumps(asdict(copy)))
            remove_earlier_versions(folder, before_s=started_s)
    return copy


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".fetching").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _recorded(record: Path) -> WeightFile | None:
    """What an earlier fetch has left; None where nothing has, or it is gone."""
    if not record.exists():
        return None
    values = json.loads(record.read_text(encoding="utf-8"))
    if not Path(values["path"]).exists():  # a learner that has come to this host removes what is older than its own
        return None
    return WeightFile(**{**values, "stamp": FileStamp(**values["stamp"])})


def _fetched(weights: WeightFile, path: Path) -> WeightFile:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for piece in _pieces(weights):
                file.write(piece.data)
        copy = seal_weights(partial, path, policy_version=weights.policy_version, node_id=this_node())
    finally:
        partial.unlink(missing_ok=True)
    if copy.checksum != weights.checksum:
        path.unlink()
        raise WeightMismatchError(
            f"version {weights.policy_version} came from node {weights.node_id} with sha256 {copy.checksum}, but was published "
            f"with {weights.checksum}; the generator keeps its weights"
        )
    return copy


def _pieces(weights: WeightFile) -> Iterator[NDArray[np.uint8]]:
    """In order. Raises `WeightsLostError`."""
    read = ray.remote(num_cpus=0)(_read_piece).options(scheduling_strategy=_on(weights.node_id))
    starts = iter(range(0, weights.stamp.num_bytes, PIECE_BYTES))
    coming = deque(read.remote(weights, start, PIECE_BYTES) for start in islice(starts, PIECES_IN_FLIGHT))
    try:
        while coming:
            yield ray.get(coming.popleft())
            coming.extend(read.remote(weights, start, PIECE_BYTES) for start in islice(starts, 1))
    except RayError as error:
        raise WeightsLostError(
            f"version {weights.policy_version} cannot be had from node {weights.node_id} any more: {reason_of(error)}"
        ) from error


def _read_piece(weights: WeightFile, start: int, num_bytes: int) -> NDArray[np.uint8]:
    """On the host that holds the file."""
    with open(weights.path, "rb") as file:
        if stamp_of(file) != weights.stamp:
            raise WeightsLostError(f"{weights.path} was replaced")
        file.seek(start)
        return np.frombuffer(file.read(num_bytes), np.uint8)


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)
