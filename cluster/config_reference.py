"""What each key of a configuration means, read from the records themselves: nothing here can go out of date.

A key is the dotted path that stands in a file, without indices into lists: `learner.kl.coef`, `scorers.weight`.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.config import StrictConfig, models_in
from cluster.errors import ConfigError

LIMITS: Final = {  # JSON Schema -> how a person says it
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "minItems": "at least {} entries",
    "pattern": "matches {}",
}
TYPES: Final = {"boolean": "true or false", "string": "text", "null": "null", "object": "mapping", "array": "list"}
NUM_SUGGESTIONS = 5
DISCRIMINATORS: Final = ("kind", "algorithm")  # fields that tell the members of a union apart
MIN_LIKENESS, LAST_LIKENESS = 0.8, 0.7  # of whole paths, and of their last parts


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKey:
    """One key of one kind of file. Produced by `keys_of`, consumed by `rayward config`."""

    key: str
    when: tuple[str, ...]  # `task.kind=jsonl`: the members of a union that have it; empty where every file does
    section: str  # the class that defines it
    defined_in: str  # that class's module
    type: str
    allowed: tuple[Any, ...]  # every value that may stand there; empty where that is no list
    limits: str
    is_required: bool
    default: Any  # None where it is required, and for a section
    meaning: str
    keys: tuple[str, ...]  # of a section: those inside


def json_schema(schema: type[StrictConfig]) -> dict[str, Any]:
    """For editors: JSON Schema of a kind of file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema.model_json_schema()}


def keys_of(schema: type[BaseModel], prefix: str = "", when: tuple[str, ...] = ()) -> Iterator[ConfigKey]:
    """Every key that a file of this kind may hold, sections before what is in them."""
    properties = schema.model_json_schema()["properties"]
    for name, field in schema.model_fields.items():
        key, members, shown = f"{prefix}{name}", models_in(schema, name), properties[name]
        owners = [base for base in schema.__mro__ if name in inspect.get_annotations(base)]
        yield ConfigKey(
            key=key,
            when=when,
            section=owners[0].__name__,
            defined_in=owners[0].__module__,
            type=("list of sections" if "items" in shown else "section") if members else _type_of(shown),
            allowed=() if members else _allowed(shown),
            limits=_limits(shown),
            is_required=field.is_required(),
            default=None if members or field.is_required() else shown.get("default", _made(field)),
            meaning=" ".join((_description(owners, name) or _documentation(members or owners[: "const" in shown])).split()),
            keys=tuple(dict.fromkeys(f"{key}.{inner}" for member in members for inner in member.model_fields)),
        )
        for member in members:
            yield from keys_of(member, f"{key}.", tuple(f"{key}.{tag}" for tag in _tags(member)) if len(members) > 1 else when)


def find_keys(kinds: Mapping[str, type[BaseModel]], key: str) -> list[tuple[list[str], ConfigKey]]:
    """Each meaning of `key`, with the kinds of file in which it has it. Indices into lists do not matter.

    Raises `ConfigError` with the nearest keys where there is none.
    """
    wanted = ".".join(part for part in key.split(".") if not part.isdigit())
    known = [(kind, found) for kind, schema in kinds.items() for found in keys_of(schema)]
    meanings: list[tuple[list[str], ConfigKey]] = []
    for kind, found in known:
        if found.key != wanted:
            continue
        for index, (of_kinds, other) in enumerate(meanings):
            if replace(other, when=()) == replace(found, when=()):
                when = tuple(dict.fromkeys([*other.when, *found.when]))
                meanings[index] = (list(dict.fromkeys([*of_kinds, kind])), replace(other, when=when))
                break
        else:
            meanings.append(([kind], found))
    if not meanings:
        raise ConfigError(f"{key}: unknown key; {_hint(wanted, list(dict.fromkeys(found.key for _, found in known)))}")
    return meanings


def value_of(config: Any, key: str) -> Any:
    """What a loaded configuration, or the values of a file, hold at `key`; of a list without index, of each entry.

    Raises `KeyError` where there is nothing.
    """
    first, _, rest = key.partition(".")
    if isinstance(config, tuple | list):
        if first.isdigit():
            if int(first) >= len(config):
                raise KeyError(key)
            return value_of(config[int(first)], rest) if rest else config[int(first)]
        return [value_of(entry, key) for entry in config]
    inside = dict(config) if isinstance(config, BaseModel | Mapping) else {}
    return value_of(inside[first], rest) if rest else inside[first]


def _hint(key: str, known: list[str]) -> str:
    """By likeness of the whole path, else by its last part: `kl_coef` is near `learner.kl.coef`."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=MIN_LIKENESS)
    if not near:
        same = [name for name in known if name.replace(".", "_").endswith(f"_{key.replace('.', '_')}")]
        likeness = difflib.get_close_matches(
            key.rpartition(".")[2], {name.rpartition(".")[2] for name in known}, 1, LAST_LIKENESS
        )
        near = same or [name for name in known if [name.rpartition(".")[2]] == likeness]
    shortest = [name for name in near if not any(name.endswith(f".{other}") for other in near)]
    if not shortest:
        return "`rayward config schema KIND` prints all of them"
    return f"did you mean {' or '.join(map(repr, shortest[:NUM_SUGGESTIONS]))}?"


def _made(field: FieldInfo) -> Any:
    """A default that is made anew each time, as it is on this machine where nothing else is set."""
    return field.get_default(call_default_factory=True, validated_data={})


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _description(owners: list[type], name: str) -> str:
    """Of the nearest class that says what the field means: one that only changes the default does not."""
    fields = (owner.model_fields[name] for owner in owners if issubclass(owner, BaseModel))
    return next((field.description for field in fields if field.description), "")


def _documentation(members: list[type[BaseModel]]) -> str:
    if len(members) < 2:
        return "".join(inspect.getdoc(member) or "" for member in members)
    return " ".join(f"{', '.join(_tags(member))}: {inspect.getdoc(member)}" for member in members)


def _tags(member: type[BaseModel]) -> list[str]:
    """`kind=jsonl`, or several of `algorithm=sarsa`, of a member of a union; they all have such a field."""
    properties = member.model_json_schema()["properties"]
    name = next(name for name in DISCRIMINATORS if name in properties)
    return [f"{name}={value}" for value in _allowed(properties[name])]


def _alternatives(shown: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(shown.get("anyOf") or shown.get("oneOf") or [shown])


def _type_of(shown: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_one_type(alternative) for alternative in _alternatives(shown)))


def _one_type(shown: Mapping[str, Any]) -> str:
    if "enum" in shown or "const" in shown:
        return "choice"
    name = shown.get("type", "any value")
    if name == "array" and "items" in shown:
        return f"list of {_type_of(shown['items'])}"
    if name == "array" and "prefixItems" in shown:
        return f"list of {len(shown['prefixItems'])}: {', '.join(_type_of(item) for item in shown['prefixItems'])}"
    return TYPES.get(name, name)


def _allowed(shown: Mapping[str, Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for alternative in _alternatives(shown):
        inner = alternative.get("items", alternative)
        found += inner.get("enum", [inner["const"]] if "const" in inner else [])
    return tuple(found)


def _limits(shown: Mapping[str, Any]) -> str:
    return ", ".join(
        text.format(alternative[name])
        for alternative in _alternatives(shown)
        for name, text in LIMITS.items()
        if name in alternative
    )
