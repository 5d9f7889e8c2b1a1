"""`rayward scale`: how many generators and scorers a living run is to have, left in its directory for its driver to read.

A file, because it needs no way to the driver from outside, and outlives both: a run that is killed and resumed has the number.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.replicas import ReplicasConfig
from cluster.errors import ConfigError, DataError, RunDirectoryInUseError
from cluster.storage.atomic_file import write_atomically
from cluster.storage.run_directory import find_run
from cluster.storage.run_lock import RunLock
from learners.settings.run import PolicyRunConfig, QuickstartConfig, load_resolved_config

SCALE_NAME = "scale.json"
GENERATORS = "generators"


def scalable_roles(config: PolicyRunConfig) -> dict[str, ReplicasConfig]:
    """By what they are called on the command line: kinds of generators, then scorers, in the order of the file."""
    kinds = {f"{GENERATORS}.{kind.name}": kind for kind in config.generators} or {GENERATORS: config.generator}
    return kinds | {f"scorers.{scorer.name}": scorer for scorer in config.scorers}


def request_scale(run: Path, assignments: Sequence[str]) -> dict[str, int]:
    """Ask a living run for other numbers, `generators=6`; returns all that are asked of it. Raises `ConfigError`."""
    path = find_run(run)
    loaded = load_resolved_config(path)
    config = loaded.policy_run() if isinstance(loaded, QuickstartConfig) else loaded
    if not isinstance(config, PolicyRunConfig):
        raise ConfigError(f"{path} trains a reward model; it has neither generators nor scorers")
    wanted = _parsed(assignments, config)
    _check_lives(path)
    numbers = wanted_numbers(path) | wanted
    write_atomically(path / SCALE_NAME, json.dumps(numbers, indent=2) + "\n")
    return numbers


def wanted_numbers(run: Path) -> dict[str, int]:
    """What has been asked of a run, by role; nothing where nobody has. Raises `DataError` for a bad file."""
    path = run / SCALE_NAME
    if not path.exists():
        return {}
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}; write it with `rayward scale`") from error
    if not isinstance(numbers, dict) or not all(isinstance(number, int) and number > 0 for number in numbers.values()):
        raise DataError(f"{path}: not a number above 0 for each role; write it with `rayward scale`")
    return numbers


def _parsed(assignments: Sequence[str], config: PolicyRunConfig) -> dict[str, int]:
    roles = scalable_roles(config)
    numbers: dict[str, int] = {}
    problems = []
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        if name not in roles:
            problems.append(f"{assignment}: the run has {', '.join(roles)}; write {next(iter(roles))}=2")
        elif problem := _problem(name, number, roles, config):
            problems.append(f"{assignment}: {problem}")
        else:
            numbers[name] = int(number)
    if problems:
        raise ConfigError(problems)
    return numbers


def _problem(name: str, number: str, roles: Mapping[str, ReplicasConfig], config: PolicyRunConfig) -> str | None:
    largest = roles[name].largest
    if name.partition(".")[0] == GENERATORS and config.generator.weight_transfer == "ipc":
        return "generator.weight_transfer=ipc ties each generator to a learner rank's GPU; the number stays as it is"
    if number.isdecimal() and 1 <= int(number) <= largest:
        return None
    scorers = (f"scorers.{index}" for index in range(len(config.scorers)))
    section = [*config.generator_sections, *scorers][list(roles).index(name)]
    return f"give a number from 1 to {largest}; for more, resume the run with {section}.max_replicas={number or largest + 1}"


def _check_lives(run: Path) -> None:
    try:
        RunLock(run).release()
    except RunDirectoryInUseError:
        return
    raise ConfigError(f"{run} is not running; set generator.num_replicas or scorers.N.num_replicas when you resume it")
