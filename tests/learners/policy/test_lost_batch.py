"""A batch whose tokens are lost with a node: every rank says so, none waits for another, and nothing has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BatchLostError
from cluster.types import ScoredBatch
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.ranks.loop import Worker, execute
from learners.ranks.mailbox import Call
from learners.settings.policy import PolicyLearnerConfig
from tests.learners.thread_ranks import ThreadRanks
from tests.records import without_the_first

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
START = {"temperature": 1.0, "max_completion_tokens": 8, "samples_per_prompt": 1, "seed": 0}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_no_rank_trains_on_a_batch_that_one_of_them_cannot_have(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path, num_ranks: int
) -> None:
    batch = scored_batch()
    config = ppo_config()
    ranks = ThreadRanks(num_ranks)

    def update(worker: Worker, given: ScoredBatch) -> Any:
        return worker.learner.update(given)

    def on_rank(rank: int, *batches: ScoredBatch) -> tuple[list[Any], bytes]:
        start = StartingPoint(model_path=tiny_model, **START)  # type: ignore[arg-type]
        learner = PolicyLearner(start, config, rank=rank, world_size=num_ranks)
        worker = Worker(rank=rank, learner=learner, writer=None)
        said = [execute(Call(function=update, arguments=(each,)), worker) for each in batches]
        return said, Path(learner.publish(tmp_path / f"{rank}", "float32").path).read_bytes()

    hurt = ranks.run(lambda rank: on_rank(rank, without_the_first(batch), batch))
    clean = ranks.run(lambda rank: on_rank(rank, batch))
    for (lost, _), _ in hurt:
        assert isinstance(lost, BatchLostError)
        assert str(lost) == f"1 of {num_ranks} learner ranks cannot have their samples any more"
    assert [(said[1].policy_version, weights) for said, weights in hurt] == [
        (said[0].policy_version, weights) for said, weights in clean
    ]
