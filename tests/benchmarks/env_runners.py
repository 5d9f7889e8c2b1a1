"""Environment steps a second that env runners collect on CartPole, one against two: python -m tests.benchmarks.env_runners.

Settings are those of configs/train/ppo_cartpole.yaml but for the number of runners. Each round samples one batch of each in turn,
without learning; medians over the rounds, and their ratio. To be run with nothing beside.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.processes.runtime import ray_session
from learners.environments.making import make_environment
from learners.rllib.configuration import algorithm_config
from learners.rllib.training import RLlibTraining
from learners.settings.run import RLlibRunConfig, load_run_config

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train" / "ppo_cartpole.yaml"
BATCH = 20_000  # environment steps of one sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with ray_session(num_cpus=3, include_dashboard=False), _runners(1) as one, _runners(2) as two:
        for training in (one, two):  # the first sample of a runner is slow
            _steps_a_second(training)
        rounds = [(_steps_a_second(one), _steps_a_second(two)) for _ in range(arguments.rounds)]
    first, second = (statistics.median(column) for column in zip(*rounds, strict=True))
    sys.stdout.write(f"one env runner {first:,.0f} steps a second, two {second:,.0f}: {second / first:.2f} times\n")


@contextmanager
def _runners(number: int) -> Iterator[RLlibTraining]:
    config = load_run_config(CONFIG, [f"learner.num_env_runners={number}"])
    assert isinstance(config, RLlibRunConfig)
    make = functools.partial(make_environment, config.task)
    training = RLlibTraining(algorithm_config(config.learner, make()), make, seed=0)
    try:
        yield training
    finally:
        training.stop()


def _steps_a_second(training: RLlibTraining) -> float:
    group = training._algorithm.env_runner_group
    share = BATCH // group.num_remote_env_runners()
    began_s = time.perf_counter()
    steps = group.foreach_env_runner(lambda runner: sum(map(len, runner.sample(num_timesteps=share))), local_env_runner=False)
    return float(sum(steps)) / (time.perf_counter() - began_s)


if __name__ == "__main__":
    main()
