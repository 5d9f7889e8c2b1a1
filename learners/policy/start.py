"""Where a policy-gradient learner starts. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What a rank needs besides its configuration. Produced by `learners.run.composition`, consumed by `PolicyLearner`."""

    model_path: str  # Hugging Face folder of the start policy, which is the reference too
    temperature: float  # of the sampled distribution
    max_completion_tokens: int  # the length limit of the run's completions
    samples_per_prompt: int  # of the run's sampling: with `prompts_per_step`, the trajectories of a full batch
    seed: int
    takes_turns: bool = False  # on its device, with engines and scorers: then it begins on the host
