"""Tables of what a request may hold, from the pydantic classes that the endpoint checks requests against."""

from typing import Any

from serving.feedback_api import PostedPreference
from serving.guard.request_fields import ChatFields, CompletionFields

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
}
BOTH, CHAT_ONLY, COMPLETION_ONLY = "both", "chat", "completions"


def sampling_table() -> str:
    """Fields of the two OpenAI routes."""
    chat, completion = (fields.model_json_schema() for fields in (ChatFields, CompletionFields))
    rows = []
    for name in {**chat["properties"], **completion["properties"]}:
        owner = chat if name in chat["properties"] else completion
        routes = BOTH if name in chat["properties"] and name in completion["properties"] else ""
        routes = routes or (CHAT_ONLY if owner is chat else COMPLETION_ONLY)
        rows.append(f"| `{name}` | {routes} | {_type(owner['properties'][name])} |")
    return "\n".join(["| field | route | type and range |", "|---|---|---|", *rows])


def feedback_table() -> str:
    """Fields of a posted preference."""
    schema = PostedPreference.model_json_schema()
    required = schema["required"]
    rows = [
        f"| `{name}` | {_type(shown)} | {'yes' if name in required else 'no'} |" for name, shown in schema["properties"].items()
    ]
    return "\n".join(["| field | type and range | required |", "|---|---|---|", *rows])


def _type(shown: dict[str, Any]) -> str:
    alternatives = [each for each in shown.get("anyOf") or shown.get("oneOf") or [shown] if each.get("type") != "null"]
    return " or ".join(dict.fromkeys(_one_type(each) for each in alternatives))


def _one_type(shown: dict[str, Any]) -> str:
    values = shown.get("enum", [shown["const"]] if "const" in shown else [])
    if values:
        return ", ".join(f"`{value}`" for value in values)
    if "anyOf" in shown or "oneOf" in shown:
        return _type(shown)
    name = str(shown.get("type", "object"))
    if name == "array":
        items = shown.get("items", {})
        name = "list of objects" if "$ref" in items or "oneOf" in items else f"list of {_one_type(items)}"
    return ", ".join([name, *(text.format(shown[limit]) for limit, text in LIMITS.items() if limit in shown)])
