"""Reference of the configuration: one table per pydantic class, from its fields, their bounds and the text below each field."""

import inspect
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, HttpUrl
from pydantic.fields import FieldInfo

from actors import config as actors_config
from actors.config import fast_dtype
from cluster.config import StrictConfig
from learners.settings import evaluation, policy, presets, reward_model, run, training
from serving.config import ServeConfig

ROOTS = (run.PolicyRunConfig, run.RewardModelRunConfig, run.QuickstartConfig, ServeConfig)
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "min_length": "length at least"}
NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "none", HttpUrl: "URL", Any: "any"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page: what it answers, and its classes with the key under which a file holds each."""

    title: str
    introduction: str
    sections: tuple[tuple[str, type[StrictConfig]], ...]


PAGES = {
    "config-run": Page(
        title="Configuration: runs",
        introduction="The top level of a file for `rayward train` or `rayward quickstart`, and what every run has.",
        sections=(
            ("a policy run", run.PolicyRunConfig),
            ("a reward-model run", run.RewardModelRunConfig),
            ("the quickstart", run.QuickstartConfig),
            ("policy (of the quickstart)", run.PolicyStageConfig),
            ("evaluation", evaluation.EvaluationConfig),
            ("evaluation.judges", evaluation.JudgeConfig),
            ("evaluation.verdicts", evaluation.VerdictConfig),
            ("checkpoint", run.CheckpointConfig),
            ("supervision", actors_config.SupervisionConfig),
        ),
    ),
    "config-task": Page(
        title="Configuration: tasks",
        introduction="What the policy is asked: the section `task`. Its `kind` says which keys it has.",
        sections=tuple(
            ("task", kind)
            for kind in (
                actors_config.JsonlTaskConfig,
                actors_config.GSM8KTaskConfig,
                actors_config.IFEvalTaskConfig,
                actors_config.ArithmeticTaskConfig,
                actors_config.ReasoningGymTaskConfig,
                actors_config.MovieReviewTaskConfig,
            )
        ),
    ),
    "config-scorer": Page(
        title="Configuration: scorers",
        introduction="What judges completions: the list `scorers`. A reward is the sum of scores times weights.",
        sections=tuple(
            ("scorers", kind)
            for kind in (
                actors_config.BuiltInFunctionScorerConfig,
                actors_config.PythonScorerConfig,
                actors_config.HttpScorerConfig,
                actors_config.RewardModelScorerConfig,
            )
        ),
    ),
    "config-generator": Page(
        title="Configuration: generators",
        introduction="How completions are sampled, and the pool of vLLM engines that samples them.",
        sections=(("sampling", actors_config.SamplingConfig), ("generator", actors_config.GeneratorConfig)),
    ),
    "config-learner": Page(
        title="Configuration: learners",
        introduction="What updates the weights: the section `learner`. `learner.algorithm` picks a preset; any key overrides it.",
        sections=(
            ("learner", policy.PolicyLearnerConfig),
            ("learner.optimizer", training.OptimizerConfig),
            ("learner.advantage", policy.AdvantageConfig),
            ("learner.policy_loss", policy.PolicyLossConfig),
            ("learner.critic", policy.CriticConfig),
            ("learner.kl", policy.KLConfig),
            ("learner.mismatch", policy.MismatchConfig),
            ("learner.reward", policy.RewardShapingConfig),
            ("learner.group_filter", policy.GroupFilterConfig),
            ("learner.workers", training.WorkerConfig),
            ("learner (algorithm: reward_model)", reward_model.RewardModelLearnerConfig),
        ),
    ),
    "config-serve": Page(
        title="Configuration: endpoint",
        introduction="Settings of `rayward serve`, in a file (`--config`) or as `key=value` on the command line.",
        sections=(("", ServeConfig),),
    ),
}


def config_pages() -> dict[str, str]:
    """Name -> Markdown."""
    pages = {name: "\n".join([f"# {page.title}\n\n{page.introduction}\n", *_sections(page)]) for name, page in PAGES.items()}
    pages["config-learner"] += f"\n{_presets()}"
    return pages


def reachable(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`root` and every record that a file of its kind may hold."""
    yield root
    for field in root.model_fields.values():
        for model in _models_in(field.annotation):
            yield from reachable(model)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _sections(page: Page) -> Iterator[str]:
    for key, model in page.sections:
        heading = f"`{key}`: " if key else ""
        kinds = get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()
        name = f"`kind: {kinds[0]}`" if len(kinds) == 1 else model.__name__
        yield f"## {heading}{name} {{ #{model.__name__} }}\n\n{_text(model.__doc__)}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        fields = sorted(model.model_fields.items(), key=lambda named: named[0] != "kind")  # which one this is comes first
        yield from (_row(model, name, field) for name, field in fields)
        yield ""


def _row(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_type(field.annotation)}{_bounds(field)} | {_default(field)} | {_text(_meaning(model, name))} |"


def _meaning(model: type[BaseModel], name: str) -> str:
    """A class that only changes the default leaves the text to the class above it; a section has that of its own class."""
    fields = (base.model_fields.get(name) for base in model.__mro__ if issubclass(base, BaseModel))
    said = next((field.description for field in fields if field is not None and field.description), "")
    sections = _models_in(model.model_fields[name].annotation)
    return said or (inspect.getdoc(sections[0]) or "" if len(sections) == 1 else "")


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is tuple:
        return f"list of {_type(arguments[0])}" if arguments[-1] is Ellipsis else f"{len(arguments)} of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}]({_page_of(annotation)}.md#{annotation.__name__})"
    return NAMES.get(annotation) or "network"  # pydantic's IPvAnyNetwork is no plain type


def _page_of(model: type[BaseModel]) -> str:
    return next(name for name, page in PAGES.items() if model in {each for _, each in page.sections})


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{words} {getattr(bound, attribute):g}"
        for bound in field.metadata
        for attribute, words in BOUNDS.items()
        if hasattr(bound, attribute)
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is fast_dtype:
        return "by device"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "defaults"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    shown = list(value) if isinstance(value, tuple) else value
    return "none" if value is None else f"`{json.dumps(shown)}`"


def _presets() -> str:
    """What each `learner.algorithm` sets."""
    lines = ["## Presets", "", "A preset is values for the parts above. A file that names a key overrides the preset.", ""]
    for name, values in presets.PRESETS.items():
        shown = yaml.safe_dump({"learner": dict(values)}, sort_keys=False).rstrip() if values else "# the defaults"
        lines += [f"### `{name}` {{ #preset-{name} }}", "", "```yaml", shown, "```", ""]
    return "\n".join(lines)
