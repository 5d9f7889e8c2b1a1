"""The control loop that does not wait: while the learner works on a step, generators and scorers work on the next ones.

Here is only the order of work; what bounds staleness is `learners.steps.lookahead`. The loss that such data needs is decoupled
PPO: arXiv:2110.00641, arXiv:2505.24298.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cluster.types import Sample, ScoredBatch, UpdateResult
from learners.steps.driver import Driver
from learners.steps.lookahead import Lookahead


class AsyncDriver(Driver):
    """A `Driver` whose generators and scorers go on while it asks the ranks. Its collector is a `Lookahead`."""

    _collector: Lookahead
    _published: list[int]  # policy versions since the ranks came, oldest first

    def run_step(self, step: int) -> Mapping[str, float]:
        """As of `Driver`."""
        metrics = super().run_step(step)
        self._publish_version(int(metrics["policy/version"]))
        return metrics

    def _forget_samples(self) -> None:
        self._collector.give_up()

    def _go_on(self) -> tuple[int, int]:
        self._collector.give_up()
        step, version = super()._go_on()
        self._published = [version]
        return step, version

    def _learn(self, batch: ScoredBatch) -> UpdateResult:
        samples = [sample for scored in batch.groups for sample in scored.samples]
        update = self._learner.submit(batch, meanwhile=self._collector.advance)
        return replace(update, metrics={**update.metrics, **staleness_metrics(samples, self._published)})

    def _generating_s(self, wall_s: Mapping[str, float]) -> float:
        """In all of it: what the step takes was made while others were learned."""
        return sum(wall_s.values())

    def _publish_version(self, version: int) -> None:
        if version != self._published[-1]:  # where every optimizer step was skipped, the weights are those of before
            self._published.append(version)


def staleness_metrics(samples: Sequence[Sample], published: Sequence[int]) -> dict[str, float]:
    """How many publications the newest weights are ahead of those that sampled, by token, and how many trajectories have several.

    `published`: policy versions, oldest first; the last is that of the learner.
    """
    age = {version: len(published) - 1 - index for index, version in enumerate(published)}
    stretches = [stretch for sample in samples for stretch in sample.stretches]
    ages = [age[stretch.policy_version] for stretch in stretches]
    return {
        "rollout/staleness_mean": float(np.average(ages, weights=[stretch.num_tokens for stretch in stretches])),
        "rollout/staleness_max": float(max(ages)),
        "rollout/mixed_versions_frac": float(np.mean([len(sample.policy_versions) > 1 for sample in samples])),
    }
