"""Configuration: strict frozen records, YAML files that hold differences only, overrides `a.b=c`, all errors at once."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ConfigError


class StrictConfig(BaseModel):
    """Base of every configuration record: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


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
        raise ConfigError([f"{source}: {_explain(schema, detail)}" for detail in error.errors()]) from error


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


def _explain(schema: type[BaseModel], detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = _known_keys(schema, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{path}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{path}: required, but not given"
    return f"{path}: {message} (got {detail['input']!r})" if detail["loc"] else message


def _known_keys(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Field names of the section at `location`; unions contribute the fields of each member."""
    candidates: list[Any] = [schema]
    for part in location:
        found: list[Any] = []
        for candidate in candidates:
            fields = getattr(candidate, "model_fields", {})
            if part in fields:
                found += _models_in(fields[part].annotation)
        # A part that is no field is a list index or the tag of a union: the candidates stay.
        candidates = found or candidates
    return sorted({name for candidate in candidates for name in getattr(candidate, "model_fields", {})})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
