"""What a run in an environment will do."""

from typing import TYPE_CHECKING, Any

from learners.environments.finite import build_environment
from learners.environments.markov_model import markov_model
from learners.run.environment.planning_stage import model_to_plan_with
from learners.settings.run import PlanningRunConfig, TabularRunConfig

if TYPE_CHECKING:
    from rich.console import RenderableType


def plan_environment_run(config: PlanningRunConfig | TabularRunConfig) -> dict[str, Any]:
    """As plain values. Makes the environment, and raises `ConfigError` where it cannot be made or does not fit the method."""
    environment = build_environment(config.task)
    spec = environment.env.spec
    if isinstance(config, PlanningRunConfig):
        has_model, work = model_to_plan_with(config, environment) is not None, {"max_sweeps": config.learner.max_sweeps}
    else:
        has_model = markov_model(environment) is not None
        work = {
            "num_episodes": config.learner.num_episodes,
            "checkpoint_every_num_episodes": config.checkpoint.every_num_episodes,
        }
    return {
        "name": config.name,
        "algorithm": config.learner.algorithm,
        "environment": config.task.env,
        "states": environment.num_states,
        "actions": environment.num_actions,
        "max_episode_steps": None if spec is None else spec.max_episode_steps,
        **work,
        "evaluation": "exact" if has_model else f"{config.evaluation.num_episodes} episodes",
        "ray_processes": 0,
    }


def environment_plan_table(plan: dict[str, Any]) -> "RenderableType":
    """The plan for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("quantity", "value")
    for name, value in plan.items():
        if name not in ("name", "algorithm", "environment", "placement"):
            shown = "no limit" if value is None else f"{value:,}" if isinstance(value, int) else value
            table.add_row(name.replace("_", " "), shown)
    return Group(Text.assemble((plan["name"], "bold"), f"  {plan['algorithm']} on {plan['environment']}"), "", table)
