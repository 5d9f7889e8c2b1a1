"""Which prompts a step uses."""

from collections.abc import Sequence

import numpy as np

from cluster.errors import ConfigError
from cluster.seeding import derive_seed
from cluster.types import Prompt


class PromptSchedule:
    """Each epoch is a permutation of all prompts, drawn from (seed, epoch).

    A step stays within one epoch, so that no prompt is in it twice; those that do not fill a last step sit the epoch out.
    """

    def __init__(self, prompts: Sequence[Prompt], *, prompts_per_step: int, seed: int) -> None:
        if len(prompts) < prompts_per_step:
            raise ConfigError(
                f"learner.prompts_per_step={prompts_per_step}, but the task has only {len(prompts)} prompts; lower it"
            )
        self._prompts = prompts
        self.prompts_per_step = prompts_per_step
        self._seed = seed

    @property
    def num_prompts(self) -> int:
        return len(self._prompts)

    def prompts_of(self, step: int) -> list[Prompt]:
        """The prompts of step 0, 1, ...; depends on nothing but the step."""
        epoch, step_in_epoch = divmod(step, len(self._prompts) // self.prompts_per_step)
        order = np.random.default_rng(derive_seed(self._seed, "prompts", epoch)).permutation(len(self._prompts))
        first = step_in_epoch * self.prompts_per_step
        return [self._prompts[index] for index in order[first : first + self.prompts_per_step].tolist()]

    def further_prompts(self, step: int, asked: Sequence[Prompt], *, count: int) -> list[Prompt]:
        """Up to `count` prompts that the step has not asked yet; depends on the step and on what it asked alone."""
        order = np.random.default_rng(derive_seed(self._seed, "further prompts", step)).permutation(len(self._prompts))
        known = {prompt.task.task_id for prompt in asked}
        fresh = (self._prompts[index] for index in order.tolist() if self._prompts[index].task.task_id not in known)
        return [prompt for prompt, _ in zip(fresh, range(count), strict=False)]
