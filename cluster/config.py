"""Configuration: strict frozen records, YAML files that hold differences only, overrides `a.b=c`, all errors at once."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ConfigError


class StrictConfig(BaseModel):
    """Base of every configuration record: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


ConfigT = TypeVar("ConfigT", bound=StrictConfig)


def load_config(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides, validate. Raises `ConfigError` with every problem, each with its path."""
    return parse_config(schema, read_yaml(path, overrides), source=str(path))


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The file's values with overrides applied, not validated yet."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file; see the folder configs/ for examples")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level is a {type(values).__name__}; it must map keys to values")
    problems = [problem for text in overrides if (problem := _apply_override(values, text))]
    if problems:
        raise ConfigError(problems)
    return values


def parse_config(schema: type[ConfigT], values: dict[str, Any], *, source: str) -> ConfigT:
    """Validate plain values against a schema."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [_explain(schema, detail) for detail in error.errors() if not _is_consequence(detail)]
        raise ConfigError([f"{source}: {problem}" for problem in problems]) from error


def _apply_override(values: dict[str, Any], text: str) -> str | None:
    """Set one `a.b=c` in place; return the problem, if any."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted:
        return f"override {text!r}: expected key=value, for example learner.learning_rate=1e-5"
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        return f"override {text!r}: the value is not valid YAML; quote it"
    if isinstance(value, str):
        value = _number_or_text(value)
    *parents, last = dotted.split(".")
    node: Any = values
    for part in parents:
        node = _descend(node, part)
        if node is None:
            return f"override {text!r}: {part!r} does not lead to a section"
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            return f"override {text!r}: {last!r} is not an index into a list of {len(node)}"
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        return f"override {text!r}: {'.'.join(parents)} is a value, not a section"
    return None


def _descend(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    if isinstance(node, dict):
        return node.setdefault(part, {})
    return None


def _number_or_text(text: str) -> float | str:
    """YAML 1.1 reads 1e-5 as text because it has no dot; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _is_consequence(detail: Any) -> bool:
    """A list whose entries are all invalid counts as empty to pydantic; the entries' own problems are reported."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _explain(schema: type[BaseModel], detail: Any) -> str:
    keys, section = _locate(schema, detail["loc"])
    path = ".".join(keys) or "(top level)"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = sorted({name for model in section for name in model.model_fields})
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{path}: required, but not given"
    if isinstance(detail["input"], Mapping):  # what is wrong with a section as a whole names its values itself
        return f"{path}: {message}" if detail["loc"] else message
    return f"{path}: {message} (got {detail['input']!r})"


def _locate(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys that lead to `location` in a file, and the records whose fields the last of them may be."""
    keys: list[str] = []
    section: list[type[BaseModel]] = [schema]
    children: list[type[BaseModel]] = [schema]
    for part in location:
        if isinstance(part, str) and len(children) > 1:
            # pydantic names the chosen member of a union here; the file does not.
            children = [model for model in children if _has_tag(model, part)] or children
            continue
        keys.append(str(part))
        if isinstance(part, str):
            section = children
            children = [child for model in section if part in model.model_fields for child in models_in(model, part)]
    return keys, section


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def models_in(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    """Every record in a field's annotation, through unions, lists and tuples."""
    found, pending = [], [model.model_fields[field].annotation]
    while pending:
        annotation = pending.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        pending += get_args(annotation)
    return found
