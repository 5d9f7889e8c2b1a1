"""What the ranks of a policy-gradient learner execute, each on its `Worker`. Imports torch only where a rank runs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import DType
from cluster.processes.hosts.folder import host_folder
from cluster.storage.serving_contract import ContractText
from cluster.types import (
    AdapterFile,
    FloatArray,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    TrajectoryGroup,
    UpdateResult,
    WeightFile,
)
from learners.policy.start import StartingPoint
from learners.ranks.loop import Worker
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import ExportedWeights
from learners.weights.link import GeneratorLink

if TYPE_CHECKING:
    from learners.policy.learner import PolicyLearner


def build(start: StartingPoint, config: PolicyLearnerConfig, rank: int, world_size: int) -> "PolicyLearner":
    """The learner of one rank."""
    from learners.policy.learner import PolicyLearner

    return PolicyLearner(start, config, rank=rank, world_size=world_size)


def update(worker: Worker, batch: ScoredBatch) -> UpdateResult:
    """Train on a batch."""
    return _learner(worker).update(batch)


def completion_logprobs(worker: Worker, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]:
    """Of each trajectory, log-probabilities of the tokens that the policy chose, in nats."""
    return _learner(worker).completion_logprobs(groups)


def start_kl(worker: Worker, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
    """Of each trajectory with a reward, log(policy / policy at the run's start), summed over its tokens, in nats."""
    return _learner(worker).start_kl(groups)


def rest(worker: Worker) -> None:
    """Leave the device to others."""
    from learners.network.residence import HOST

    _learner(worker).move_to(HOST)


def wake(worker: Worker) -> None:
    """Come back to the device."""
    learner = _learner(worker)
    learner.move_to(learner.device)


def connect(worker: Worker, link: GeneratorLink) -> None:
    """Join the generators' end of a link over devices."""
    _learner(worker).connect(link)


def link_epoch(worker: Worker) -> int:
    """Of the link that this rank has joined; 0 where there is none, as after a restart."""
    return _learner(worker).link_epoch


def send_weights(worker: Worker) -> SentWeights:
    """Send weights over the link."""
    return _learner(worker).send_weights()


def publish(worker: Worker, directory: Path, dtype: DType, probe: Sequence[int] = ()) -> WeightFile | AdapterFile | None:
    """Write weights for generators, on rank 0. `directory`: the run's in shared memory, the same on all hosts."""
    if worker.rank == 0:
        return _learner(worker).publish(host_folder(directory), dtype, probe)
    _learner(worker).files.hand_over(dtype, probe)
    return None


def export(
    worker: Worker, directory: Path, dtype: DType, texts: Sequence[ContractText], weights: ExportedWeights = "merged"
) -> str | None:
    """Write a policy folder with its serving contract, on rank 0; why that failed, empty where it did not."""
    if worker.rank == 0:
        return _learner(worker).export(directory, dtype, texts, weights)
    _learner(worker).files.hand_over_export(dtype, texts, weights)
    return None


def _learner(worker: Worker) -> "PolicyLearner":
    learner: PolicyLearner = worker.learner
    return learner
