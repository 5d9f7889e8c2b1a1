"""What a learner writes into a checkpoint and reads back: tensors as safetensors, numbers as JSON, nothing else.

Every random draw of a run derives from its seed and its step, so the number of steps done is the data cursor, and the state of
torch's generator is kept only for parts that would draw from it.
"""

import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.errors import CannotResumeError
from cluster.storage.checkpoint import Checkpoint, CheckpointFolder
from cluster.types import SaveReport
from learners.network.collectives import numbers_of_rank_0
from learners.network.sharding import local_part, local_parts
from learners.ranks.mailbox import CheckpointPlan

logger = logging.getLogger(__name__)

NO_CHECKPOINT, NO_INTACT_CHECKPOINT = -1, -2  # what rank 0 tells the others in place of a step
TENSORS_NAME = "learner.safetensors"
NUMBERS_NAME = "learner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSnapshot:
    """A learner between two steps. Produced and consumed by a learner; lies in a checkpoint."""

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


def read_snapshot(checkpoint: Checkpoint) -> LearnerSnapshot:
    """The snapshot in a verified checkpoint. Raises `CannotResumeError` where its files are whole, but no snapshot."""
    try:
        return LearnerSnapshot(
            tensors=load_file(checkpoint.path / TENSORS_NAME),
            numbers=json.loads((checkpoint.path / NUMBERS_NAME).read_text(encoding="utf-8")),
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise CannotResumeError(f"{checkpoint.path} holds no learner's snapshot: {error}; remove it, and resume again") from error


class Checkpointed(Protocol):
    """A learner that can be written down, one replica on every rank."""

    device: torch.device

    def snapshot(self) -> LearnerSnapshot: ...

    def restore(self, snapshot: LearnerSnapshot) -> None: ...


def restore_newest(learner: Checkpointed, plan: CheckpointPlan, *, rank: int, world_size: int) -> None:
    """Restore on every rank the checkpoint that rank 0 finds, so that none goes on from another; nothing where there is none.

    Raises `CannotResumeError` on all ranks where every checkpoint is damaged, or was written under other facts.
    """
    folder = CheckpointFolder(plan.directory)
    problem = CannotResumeError("rank 0 found no intact checkpoint")
    step = NO_CHECKPOINT
    if rank == 0:
        try:
            newest = folder.newest_intact()
        except CannotResumeError as error:
            problem, step = error, NO_INTACT_CHECKPOINT
        else:
            step = NO_CHECKPOINT if newest is None else newest.manifest.step
    (step,) = numbers_of_rank_0([step], rank=rank, world_size=world_size, device=learner.device)
    if step == NO_INTACT_CHECKPOINT:
        raise problem
    if step != NO_CHECKPOINT:
        checkpoint = folder.verified(step)
        check_facts(checkpoint, plan.facts)
        learner.restore(read_snapshot(checkpoint))


class CheckpointWriter:
    """Writes snapshots in a thread while training goes on; at most one is on its way."""

    def __init__(self, plan: CheckpointPlan) -> None:
        self._folder = CheckpointFolder(plan.directory)
        self._plan = plan
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
        def write_files(path: Path) -> None:
            save_file(dict(snapshot.tensors), path / TENSORS_NAME)
            (path / NUMBERS_NAME).write_text(json.dumps(dict(snapshot.numbers), allow_nan=False), encoding="utf-8")

        started_s = time.monotonic()
        problem = ""
        try:
            self._folder.write(step, policy_version=policy_version, facts=self._plan.facts, write_files=write_files)
            self._folder.discard_after(step)  # passed over as damaged, they would be taken for the newest ones to keep
            self._folder.prune(keep=self._plan.keep)
        except Exception as error:  # noqa: BLE001 - a full disk shows as OSError or as safetensors' own error; training goes on
            logger.warning("the checkpoint of step %d was not written: %s", step, error)
            problem = f"{type(error).__name__}: {error}"
        return SaveReport(step=step, seconds=time.monotonic() - started_s, problem=problem)


def check_facts(checkpoint: Checkpoint, facts: Mapping[str, str]) -> None:
    """Raise `CannotResumeError` where the checkpoint was written under other facts."""
    differing = {name for name in facts if checkpoint.manifest.facts.get(name) != facts[name]}
    if differing:
        changes = (f"{name} was {checkpoint.manifest.facts.get(name)}, is {facts[name]}" for name in sorted(differing))
        raise CannotResumeError(f"{checkpoint.path} was written under other facts: {'; '.join(changes)}; put them back")
