"""What a run with one of RLlib's algorithms will do."""

from typing import Any

from learners.rllib.configuration import algorithm_config
from learners.run.environment.rllib_stage import GymnasiumWorld
from learners.run.language_model.token_stage import TokenWorld
from learners.settings.environments.rllib import RLlibOnlineConfig, RLlibPPOLearnerConfig
from learners.settings.language_model.tokens import TokenRunConfig
from learners.settings.run import RLlibRunConfig


def plan_rllib_run(config: RLlibRunConfig | TokenRunConfig) -> dict[str, Any]:
    """As plain values. Makes the environment, and raises `ConfigError` where it cannot be made or RLlib refuses a setting."""
    learner = config.learner
    world: TokenWorld | GymnasiumWorld
    if isinstance(config, TokenRunConfig):
        world = TokenWorld(config)
        environment, module_spec = world.example, world.module_spec
        evaluation = f"{config.evaluation.num_prompts * config.evaluation.samples_per_prompt} completions"
    else:
        world = GymnasiumWorld(config)
        environment, module_spec = world.example, None
        evaluation = f"{config.evaluation.num_episodes} episodes"
    rllib = algorithm_config(learner, environment, module_spec=module_spec)
    batch = rllib.total_train_batch_size
    work = {"env_steps_per_iteration": rllib.min_sample_timesteps_per_iteration or batch, "env_steps_per_batch": batch}
    if isinstance(learner, RLlibOnlineConfig):
        work = {"environments": max(1, learner.num_env_runners) * learner.num_envs_per_env_runner, **work}
    elif world.recorded is not None:
        work = {"recorded_episodes": world.recorded.num_episodes, "recorded_steps": world.recorded.num_steps, **work}
    if isinstance(learner, RLlibPPOLearnerConfig):
        minibatches = -(-learner.train_batch_size_per_learner // learner.minibatch_size)
        work["optimizer_steps_per_iteration"] = learner.num_epochs * minibatches
    return {
        "name": config.name,
        "algorithm": learner.algorithm,
        "environment": config.task.env,
        "observations": " ".join(str(environment.observation_space).split()),
        "actions": str(environment.action_space),
        "max_episode_steps": None if environment.spec is None else environment.spec.max_episode_steps,
        "num_env_steps": learner.num_env_steps,
        **work,
        "checkpoint_every_num_env_steps": config.checkpoint.every_num_env_steps,
        "evaluation": evaluation,
        "ray_processes": rllib.num_env_runners + rllib.num_learners,
    }
