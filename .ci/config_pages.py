"""Reference of the configuration: a table for each section of a file, from what `rayward config explain` says of each key."""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from cluster.config_reference import ConfigKey, keys_of
from learners.settings.presets import PRESETS
from rayward.settings import schemas

Section = tuple[str, tuple[str, ...]]  # dotted key; the member of a union that has it
Sections = dict[Section, list[ConfigKey]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page: what it answers, of which kind of file, and the first parts of the keys that it lists ("" for the top level)."""

    title: str
    introduction: str
    kind: str
    starts: tuple[str, ...]


PAGES = {
    "config-run": Page(
        title="Configuration: runs",
        introduction="The top level of a file for `rayward train` with a policy-gradient method, and its small sections.",
        kind="policy",
        starts=("", "asynchronous", "evaluation", "checkpoint", "export", "supervision"),
    ),
    "config-task": Page(
        title="Configuration: tasks",
        introduction="What the policy is asked: the section `task`. Its `kind` says which keys it has.",
        kind="policy",
        starts=("task",),
    ),
    "config-scorer": Page(
        title="Configuration: scorers",
        introduction="What judges completions: the list `scorers`. A reward is the sum of scores times weights.",
        kind="policy",
        starts=("scorers",),
    ),
    "config-generator": Page(
        title="Configuration: generators",
        introduction="How completions are sampled, and the pool of vLLM engines that samples them.",
        kind="policy",
        starts=("sampling", "generator", "generators"),
    ),
    "config-learner": Page(
        title="Configuration: learners",
        introduction="What updates the weights: the section `learner`. `learner.algorithm` picks a preset; any key overrides it.",
        kind="policy",
        starts=("learner",),
    ),
    "config-reward-model": Page(
        title="Configuration: reward models",
        introduction="A file for `rayward train` with `learner.algorithm: reward_model`.",
        kind="reward_model",
        starts=("", "learner"),
    ),
    "config-pretraining": Page(
        title="Configuration: pretraining",
        introduction="A file for `rayward train` with `learner.algorithm: pretrain`: a language model of one's own, from a text.",
        kind="pretraining",
        starts=("", "text", "learner"),
    ),
    "config-tabular": Page(
        title="Configuration: learning from episodes",
        introduction="A file for `rayward train` with Monte Carlo, Q-learning, SARSA, expected SARSA or REINFORCE over a table.",
        kind="tabular",
        starts=("", "task", "learner", "evaluation", "checkpoint"),
    ),
    "config-rllib": Page(
        title="Configuration: RLlib",
        introduction="A file for `rayward train` with one of RLlib's algorithms. Keys have RLlib's own names.",
        kind="rllib",
        starts=("", "task", "learner", "evaluation", "checkpoint"),
    ),
    "config-tokens": Page(
        title="Configuration: token environment",
        introduction="A file for `rayward train` with `learner.algorithm: rllib_ppo` and `task.kind: tokens`.",
        kind="tokens",
        starts=("", "task", "learner", "evaluation", "checkpoint"),
    ),
    "config-planning": Page(
        title="Configuration: planning",
        introduction="A file for `rayward train` with value iteration or policy iteration.",
        kind="planning",
        starts=("", "task", "learner", "evaluation"),
    ),
    "config-serve": Page(
        title="Configuration: endpoint",
        introduction="Settings of `rayward serve`, in a file (`--config`) or as `key=value` on the command line.",
        kind="serve",
        starts=("", "limits", "quota"),
    ),
}
# A quickstart is a reward-model learner and a policy stage; their keys are on those pages.
QUICKSTART = """## A quickstart

A file for `rayward quickstart` has the same top level, and two sections in place of the others. `reward_model` holds what
`learner` holds in a [reward-model file](config-reward-model.md). `policy` holds all sections of a policy file. A scorer of kind
`reward_model` whose `model` is `reward_model` uses the one that the first stage trains.
"""


def config_pages() -> dict[str, str]:
    """Name -> Markdown."""
    pages = {name: "\n".join([f"# {page.title}\n\n{page.introduction}\n", *_sections(page)]) for name, page in PAGES.items()}
    pages["config-run"] += f"\n{QUICKSTART}"
    pages["config-learner"] += f"\n{_presets()}"
    return pages


@functools.cache
def sections_of(schema: type[BaseModel]) -> Sections:
    """Every section of a kind of file, with its keys."""
    found: Sections = {}
    for key in keys_of(schema):
        found.setdefault((key.key.rpartition(".")[0], key.when), []).append(key)
    return found


def sections_on(page: Page) -> Sections:
    """Those that the page lists."""
    sections = sections_of(schemas()[page.kind])
    return {section: keys for section, keys in sections.items() if section[0].partition(".")[0] in page.starts}


def _sections(page: Page) -> Iterator[str]:
    meanings = {(key.key, key.when): key.meaning for keys in sections_of(schemas()[page.kind]).values() for key in keys}
    for (section, when), keys in sections_on(page).items():
        field, kinds = _discriminator(when)
        if section:
            of_section = [key.meaning for key in keys if key.key == field] or [meanings[section, when]]
            only = f": `{field.rpartition('.')[2]}: {', '.join(kinds)}`" if kinds else ""
            yield f"## `{section}`{only} {{ #{'-'.join([section.replace('.', '-'), *kinds])} }}\n"
            yield f"{_text(of_section[0])}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        first = [key for key in keys if key.key == field]
        yield from (_row(key) for key in [*first, *(key for key in keys if key not in first)])
        yield ""


def _discriminator(when: tuple[str, ...]) -> tuple[str, list[str]]:
    """(`task.kind`, its values) of the members of a union; nothing where every file has the section."""
    return (when[0].partition("=")[0] if when else ""), [condition.partition("=")[2] for condition in when]


def _row(key: ConfigKey) -> str:
    return f"| `{key.key}` | {_type(key)} | {_default(key)} | {_text(key.meaning)} |"


def _type(key: ConfigKey) -> str:
    values = ", ".join(f"`{value}`" for value in key.allowed)
    limits = re.sub(r"matches (\S+)", r"matches `\1`", key.limits).replace("|", "\\|")
    return ", ".join(filter(None, [values or key.type, limits]))


def _default(key: ConfigKey) -> str:
    if key.is_required:
        return "required"
    if key.keys:
        return ""
    if key.key.endswith("dtype"):  # as it is on the machine that runs
        return "by device"
    return "none" if key.default is None else f"`{_shown(key.default)}`"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _presets() -> str:
    """What each `learner.algorithm` sets."""
    lines = ["## Presets", "", "A preset is values for the keys above. A file that names a key overrides the preset.", ""]
    for name, values in PRESETS.items():
        shown = yaml.safe_dump({"learner": dict(values)}, sort_keys=False).rstrip() if values else "# the defaults"
        lines += [f"### `{name}` {{ #preset-{name} }}", "", "```yaml", shown, "```", ""]
    return "\n".join(lines)
