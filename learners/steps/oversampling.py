"""More prompts than a step needs: the step takes those whose completions are all there first, and the longest are cut.

A step then waits for its longest completion no more. It also learns less from prompts that make the policy write much, so what
was cut is in the ledger and in the metrics. Which prompts are first depends on time: a step that is done again may take others.
"""

from collections.abc import Generator, Sequence

from cluster.errors import ConfigError
from cluster.types import CutGroup, Prompt, SamplingParameters, TrajectoryGroup
from learners.steps.collection import Collected, PlainCollector, Rollouts, Scoring
from learners.steps.prompt_schedule import PromptSchedule


class Oversampling:
    """Implements `Collector`."""

    def __init__(
        self,
        rollouts: Rollouts,
        scoring: Scoring,
        sampling: SamplingParameters,
        schedule: PromptSchedule,
        *,
        extra_prompts: int,
        min_rewards: int = 1,
    ) -> None:
        """`extra_prompts`: asked besides those of a step. `min_rewards`: as of `PlainCollector`."""
        if schedule.num_prompts < schedule.prompts_per_step + extra_prompts:
            raise ConfigError(
                f"extra_prompts_per_step={extra_prompts} beside learner.prompts_per_step={schedule.prompts_per_step}, but the "
                f"task has only {schedule.num_prompts} prompts; lower one of them"
            )
        first = _FirstComplete(rollouts, num_wanted=schedule.prompts_per_step)
        self._inner = PlainCollector(first, scoring, sampling, min_rewards=min_rewards)
        self._schedule = schedule
        self._samples_per_prompt = sampling.samples_per_prompt
        self._extra_prompts = extra_prompts

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """As many groups as prompts, those of the step and others alike."""
        asked = [*prompts, *self._schedule.further_prompts(step, prompts, count=self._extra_prompts)]
        taken = self._inner.collect(step, asked)
        complete = {scored.group.task_id for scored in taken.groups + taken.left_out}
        cut = [prompt for prompt in asked if prompt.task.task_id not in complete]
        return Collected(
            groups=taken.groups,
            left_out=taken.left_out,
            cut=tuple(CutGroup(prompt=prompt, num_samples=self._samples_per_prompt) for prompt in cut),
            metrics={**taken.metrics, "rollout/cut_prompts": float(len(cut))},
        )


class _FirstComplete:
    """Implements `Rollouts`: so many groups, and what is asked besides is taken back."""

    def __init__(self, rollouts: Rollouts, *, num_wanted: int) -> None:
        self._rollouts = rollouts
        self._num_wanted = num_wanted

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Generator[TrajectoryGroup | None, None, None]:
        groups, num_complete = self._rollouts.collect(prompts, sampling), 0
        for group in groups:
            num_complete += group is not None
            if num_complete == self._num_wanted:
                groups.close()  # before the last is judged, so that the engines are free meanwhile
                yield group
                return
            yield group
