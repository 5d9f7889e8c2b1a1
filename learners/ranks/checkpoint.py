"""What a learner writes into a checkpoint and reads back: tensors as safetensors, numbers as JSON, nothing else.

A sharded learner writes one file for each part, by the rank that holds it, and each rank reads the rows that it will hold. Parts
follow one another row by row, so another number of ranks or another sharding may read them.

Every random draw of a run derives from its seed and its step, so the number of steps done is the data cursor, and the state of
torch's generator is kept only for parts that would draw from it.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cluster.errors import CannotResumeError
from cluster.storage.checkpoint import Checkpoint, CheckpointFolder
from cluster.types import SaveReport
from learners.network.collectives import numbers_of_rank_0
from learners.network.sharding import WHOLE, Shard, local_part, local_parts
from learners.network.tensor_files import TensorFiles
from learners.ranks.mailbox import CheckpointPlan

logger = logging.getLogger(__name__)

NO_CHECKPOINT, NO_INTACT_CHECKPOINT = -1, -2  # what rank 0 tells the others in place of a step
TENSORS_NAME = "learner.safetensors"
PARTS_PATTERN = "learner*.safetensors"  # sorted, they are in the order of the parts
NUMBERS_NAME = "learner.json"
RANDOM_STATE = "random_state"  # one for all ranks, in the first part
MAX_NAME_BYTES = 64  # of a folder that is being written


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSnapshot:
    """A learner between two steps, or one rank's part of it. Produced and consumed by a learner; lies in a checkpoint."""

    tensors: Mapping[str, Tensor]  # on the CPU, shared with nobody
    numbers: Mapping[str, Any]  # JSON values


def copied(tensors: Mapping[str, Tensor], *, under: str) -> dict[str, Tensor]:
    """Copies on the CPU, named `under`/name, of this rank's part: training goes on while they are written."""
    return {f"{under}/{name}": local_part(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def section(tensors: Mapping[str, Tensor], *, under: str) -> dict[str, Tensor]:
    """The tensors named `under`/name, by name."""
    return {name.removeprefix(f"{under}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{under}/")}


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], *, what: str) -> None:
    """Set this rank's part of every target to the source of its name.

    Raises `CannotResumeError` where names, shapes or types differ.
    """
    parts = local_parts(targets)
    differing = sorted(parts.keys() ^ sources.keys()) or [
        name for name, target in parts.items() if (target.shape, target.dtype) != (sources[name].shape, sources[name].dtype)
    ]
    if differing:
        raise CannotResumeError(
            f"the checkpoint's {what} does not fit the configuration: {', '.join(differing[:3])} differ"
            f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}; resume with the settings that wrote it"
        )
    for name, target in parts.items():
        target.copy_(sources[name])


def read_snapshot(checkpoint: Checkpoint, shard: Shard = WHOLE) -> LearnerSnapshot:
    """One part of the snapshot in a checkpoint. Raises `CannotResumeError` where its files are whole, but no snapshot."""
    try:
        paths = sorted(checkpoint.path.glob(PARTS_PATTERN))
        if not paths:
            raise FileNotFoundError(f"no {PARTS_PATTERN}")
        with TensorFiles(paths) as files:
            tensors = {
                name: files.tensor(name) if name.startswith(f"{RANDOM_STATE}/") else files.part(name, shard)
                for name in files.names()
            }
        numbers = json.loads((checkpoint.path / NUMBERS_NAME).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CannotResumeError(f"{checkpoint.path} holds no learner's snapshot: {error}; remove it, and resume again") from error
    return LearnerSnapshot(tensors=tensors, numbers=numbers)


class Checkpointed(Protocol):
    """A learner that can be written down, as a replica or a part on every rank."""

    device: torch.device
    shard: Shard  # what of each tensor its snapshots hold

    def snapshot(self) -> LearnerSnapshot: ...

    def restore(self, snapshot: LearnerSnapshot) -> None: ...


def restore_newest(learner: Checkpointed, plan: CheckpointPlan, *, rank: int, world_size: int) -> None:
    """Restore on every rank the checkpoint that rank 0 finds, so that none goes on from another; nothing where there is none.

    Rank 0 compares every file with the manifest; the others look at the manifest alone, and read what they need. Raises
    `CannotResumeError` on all ranks where every checkpoint is damaged, or was written under other facts.
    """
    folder = CheckpointFolder(plan.directory)
    problem = CannotResumeError("rank 0 found no intact checkpoint")
    newest: Checkpoint | None = None
    step, digest = NO_CHECKPOINT, 0
    if rank == 0:
        try:
            newest = folder.newest_intact()
        except CannotResumeError as error:
            problem, step = error, NO_INTACT_CHECKPOINT
        else:
            step, digest = (NO_CHECKPOINT, 0) if newest is None else (newest.manifest.step, _digest(newest))
    step, digest = numbers_of_rank_0([step, digest], rank=rank, world_size=world_size, device=learner.device)
    if step == NO_INTACT_CHECKPOINT:
        raise problem
    if step != NO_CHECKPOINT:
        checkpoint = newest or folder.listed(step)
        if _digest(checkpoint) != digest:
            raise CannotResumeError(
                f"{checkpoint.path} is not on rank {rank} what it is on rank 0; let all ranks share one folder"
            )
        checkpoint.check_facts(plan.facts)
        learner.restore(read_snapshot(checkpoint, learner.shard))


class PartWriters:
    """What the ranks that write one checkpoint say to each other, from threads beside training: a process group of its own.

    Call it on every rank. Where one rank writes everything, nothing is said.
    """

    def __init__(self, num_writers: int) -> None:
        self._group = torch.distributed.new_group(list(range(num_writers)), backend="gloo") if num_writers > 1 else None

    def share_folder(self, path: Path | None) -> None:
        """Of the first one, to the others: where to write; None is nowhere, this time."""
        if self._group is not None:
            text = bytearray(("" if path is None else path.name).encode().ljust(MAX_NAME_BYTES))
            torch.distributed.broadcast(torch.frombuffer(text, dtype=torch.uint8), 0, self._group)

    def shared_folder(self, directory: Path) -> Path | None:
        """Of the others: what the first one shares, a folder in `directory`."""
        name = torch.zeros(MAX_NAME_BYTES, dtype=torch.uint8)
        torch.distributed.broadcast(name, 0, self._group)
        text = bytes(name.tolist()).decode().rstrip()
        return directory / text if text else None

    def num_failed(self, problem: Exception | None) -> int:
        """Of all of them, once all have written."""
        failed = torch.tensor(float(problem is not None))
        if self._group is not None:
            torch.distributed.all_reduce(failed, group=self._group)
        return int(failed)


def checkpoint_writer(plan: CheckpointPlan, shard: Shard, *, rank: int) -> "CheckpointWriter | None":
    """Of this rank; None where another holds the same part. Call it on every rank."""
    writers = PartWriters(shard.count)
    return CheckpointWriter(plan, shard, writers) if rank < shard.count else None


class CheckpointWriter:
    """Writes snapshots in a thread while training goes on; at most one is on its way.

    Of a sharded learner there is one writer a part. The first makes the checkpoint, when all have written theirs.
    """

    def __init__(self, plan: CheckpointPlan, shard: Shard = WHOLE, writers: PartWriters | None = None) -> None:
        self._folder = CheckpointFolder(plan.directory)
        self._plan = plan
        self._shard = shard
        self._writers = writers or PartWriters(1)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[SaveReport] | None = None

    def begin(self, step: int, snapshot: LearnerSnapshot, *, policy_version: int) -> SaveReport | None:
        """Start to write, after the checkpoint before is written; returns how that one ended, None where there was none."""
        previous = self.finish()
        self._writing = self._thread.submit(self._write, step, snapshot, policy_version)
        return previous

    def finish(self) -> SaveReport | None:
        """Wait for the checkpoint that is being written; returns how it ended, None where there is none."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _write(self, step: int, snapshot: LearnerSnapshot, policy_version: int) -> SaveReport:
        started_s = time.monotonic()
        problem = ""
        try:
            if self._shard.index == 0:
                self._write_checkpoint(step, snapshot, policy_version)
            elif (path := self._writers.shared_folder(self._plan.directory)) is not None:
                self._write_part(path, snapshot)
        except Exception as error:  # noqa: BLE001 - a full disk shows as OSError or as safetensors' own error; training goes on
            logger.warning("the checkpoint of step %d was not written: %s", step, error)
            problem = f"{type(error).__name__}: {error}"
        return SaveReport(step=step, seconds=time.monotonic() - started_s, problem=problem)

    def _write_checkpoint(self, step: int, snapshot: LearnerSnapshot, policy_version: int) -> None:
        is_shared = False

        def write_files(path: Path) -> None:
            nonlocal is_shared
            is_shared = True
            self._writers.share_folder(path)
            self._write_part(path, snapshot)
            (path / NUMBERS_NAME).write_text(json.dumps(dict(snapshot.numbers), allow_nan=False), encoding="utf-8")

        try:
            self._folder.write(step, policy_version=policy_version, facts=self._plan.facts, write_files=write_files)
        finally:
            if not is_shared:  # there was no place to write to, and the others wait for one
                self._writers.share_folder(None)
        self._folder.discard_after(step)  # passed over as damaged, they would be taken for the newest ones to keep
        self._folder.prune(keep=self._plan.keep)

    def _write_part(self, path: Path, snapshot: LearnerSnapshot) -> None:
        """Returns when the others have written theirs; raises where one of them, or this one, could not."""
        problem: Exception | None = None
        try:
            _save(snapshot.tensors, path / _part_name(self._shard))
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            problem = error
        num_failed = self._writers.num_failed(problem)
        if problem is not None:
            raise problem
        if num_failed:
            raise OSError(f"{num_failed} of {self._shard.count} ranks could not write their parts; their logs say why")


def _part_name(shard: Shard) -> str:
    return TENSORS_NAME if shard.count == 1 else f"learner-{shard.index:05d}-of-{shard.count:05d}.safetensors"


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """To the disk: on a network's file system no other rank could do that."""
    save_file(dict(tensors), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _digest(checkpoint: Checkpoint) -> int:
    """Of the manifest, which has those of all files; what fits an int64."""
    return int.from_bytes(hashlib.sha256(checkpoint.manifest.to_bytes()).digest()[:7])
