"""What keys mean, read from the records themselves."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from cluster.config import StrictConfig
from cluster.config_reference import ConfigKey, find_keys, json_schema, keys_of, value_of
from cluster.errors import ConfigError


class Rate(StrictConfig):
    """How fast."""

    start: float = Field(0.1, gt=0, lt=1)
    """At the beginning. arXiv:1707.06347, table 1."""
    decay: Literal["none", "linear"] = "none"
    """How it falls."""


class Fast(Rate):
    """Faster."""

    start: float = Field(0.5, gt=0, lt=1)


class File(StrictConfig):
    """Lines of a file."""

    kind: Literal["file"] = "file"
    path: str
    """Where it lies."""
    limit: int | None = Field(None, ge=1)
    """Lines that are read."""


class Web(StrictConfig):
    """Pages."""

    kind: Literal["web"] = "web"
    path: str
    """Where it lies."""


class Whole(StrictConfig):
    """A kind of file."""

    slow: Rate = Rate()
    fast: Fast = Fast()
    sources: tuple[Annotated[File | Web, Field(discriminator="kind")], ...] = Field(min_length=1)
    weights: tuple[float, float] = (0.5, 0.5)
    """Of two things."""
    tags: dict[str, str] = Field(default_factory=dict)
    """For people."""


class Other(StrictConfig):
    """Another kind of file, with a key of the same meaning."""

    slow: Rate = Rate()
    size: int
    """Of it."""


def the_key(key: str) -> ConfigKey:
    ((_, found),) = find_keys({"whole": Whole}, key)
    return found


def test_a_key_has_its_meaning_with_its_source_and_everything_that_may_stand_there() -> None:
    found = the_key("slow.start")
    assert (found.meaning, found.type, found.limits, found.default) == (
        "At the beginning. arXiv:1707.06347, table 1.",
        "number",
        "above 0, below 1",
        0.1,
    )
    assert (found.section, found.defined_in, found.is_required) == ("Rate", __name__, False)
    assert (the_key("slow.decay").type, the_key("slow.decay").allowed) == ("choice", ("none", "linear"))
    assert the_key("weights").type == "list of 2: number, number"
    assert the_key("tags").default == {}


def test_a_class_that_changes_a_default_keeps_the_meaning() -> None:
    found = the_key("fast.start")
    assert (found.default, found.section, found.meaning) == (0.5, "Fast", "At the beginning. arXiv:1707.06347, table 1.")
    assert the_key("fast.decay").section == "Rate"


def test_a_section_names_the_keys_inside() -> None:
    found = the_key("slow")
    assert (found.type, found.keys, found.meaning) == ("section", ("slow.start", "slow.decay"), "How fast.")
    listed = the_key("sources")
    assert (listed.type, listed.limits, listed.is_required) == ("list of sections", "at least 1 entries", True)
    assert listed.meaning == "kind=file: Lines of a file. kind=web: Pages."


def test_a_key_of_some_members_of_a_union_says_which() -> None:
    limit = the_key("sources.limit")
    assert (limit.when, limit.type, limit.limits, limit.default) == (
        ("sources.kind=file",),
        "integer or null",
        "at least 1",
        None,
    )
    assert the_key("sources.0.limit") == limit
    meanings = find_keys({"whole": Whole}, "sources.path")  # of two classes, so two meanings
    assert [found.when for _, found in meanings] == [("sources.kind=file",), ("sources.kind=web",)]


def test_kinds_of_file_that_share_a_meaning_share_an_entry() -> None:
    ((kinds, found),) = find_keys({"whole": Whole, "other": Other}, "slow.start")
    assert (kinds, found.section) == (["whole", "other"], "Rate")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("slow.stat", "did you mean 'slow.start'?"),
        ("slo.start", "did you mean 'slow.start'?"),
        ("start", "did you mean 'slow.start' or 'fast.start'?"),
        ("fast_decay", "did you mean 'fast.decay'?"),
        ("limits", "did you mean 'sources.limit'?"),
        ("banana", "`rayward config schema KIND` prints all of them"),
        ("", "`rayward config schema KIND` prints all of them"),
    ],
)
def test_a_near_miss_suggests_the_right_key(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_keys({"whole": Whole}, key)
    assert str(caught.value) == f"{key}: unknown key; {hint}"


def test_values_are_found_in_records_and_plain_values() -> None:
    values = {"sources": [{"kind": "file", "path": "a"}, {"kind": "web", "path": "b"}]}
    config = Whole.model_validate(values)
    assert value_of(config, "slow.start") == 0.1
    assert value_of(config, "sources.1.path") == value_of(values, "sources.1.path") == "b"
    assert value_of(config, "sources.path") == ["a", "b"]
    for missing in ("slow.start", "sources.2.path", "sources.limit"):
        with pytest.raises(KeyError):
            value_of(values, missing)


def test_the_schema_is_what_an_editor_checks_against() -> None:
    schema = json_schema(Whole)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["sources"]
    assert schema["$defs"]["Rate"]["properties"]["start"]["description"].startswith("At the beginning.")


def test_sections_come_before_what_is_in_them() -> None:
    assert [found.key for found in keys_of(Other)] == ["slow", "slow.start", "slow.decay", "size"]
