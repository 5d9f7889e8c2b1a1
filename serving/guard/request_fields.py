"""The fields that a request may have, and the range of each.

OpenAI's fields that vLLM honours, and a few of vLLM's own. Any other field is refused by name: the rest of vLLM's fields load
templates, media and grammars, or ask for beam search. Sizes that a configuration sets are checked in `request_check`.
Ranges keep numbers finite on the engine's side: a penalty of 1e-30 would make every logit infinite.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**53 - 1  # JSON's largest exact integer; vLLM adds the sample's index to it

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Label = Annotated[str, StringConstraints(max_length=256)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class StrictFields(BaseModel):
    """No other field, no number in a string, no NaN."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class StreamOptions(StrictFields):
    """What a stream tells beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class PlainText(StrictFields):
    """`response_format`: structured output is off, so the one format is text."""

    type: Literal["text"]


class TextPart(StrictFields):
    """A piece of a message. Images, sound and files are not taken."""

    type: Literal["text"]
    text: str


def _kind(value: Any) -> str | None:
    """By the first element, so that a long list is checked against one schema."""
    if value == []:
        return None
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, list):
        return "[token lists]"
    kinds = {(False, str): "[text]", (True, str): "[list]", (True, int): "[tokens]", (True, dict): "[list]"}
    return kinds.get((isinstance(value, list), type(first)))


Content = Annotated[
    Annotated[str, Tag("[text]")] | Annotated[list[TextPart], Tag("[list]")],
    Discriminator(
        _kind, custom_error_type="content", custom_error_message="must be a text, or a list of text parts that is not empty"
    ),
]
Prompt = Annotated[
    Annotated[str, Tag("[text]")]
    | Annotated[list[str], Tag("[list]")]
    | Annotated[list[TokenId], Tag("[tokens]")]
    | Annotated[list[TokenIds], Tag("[token lists]")],
    Discriminator(
        _kind,
        custom_error_type="prompt",
        custom_error_message="must be a text, a list of texts, or token ids, and no list is empty",
    ),
]


class CalledFunction(StrictFields):
    """What an earlier turn of the assistant called."""

    name: FunctionName
    arguments: str


class ToolCall(StrictFields):
    """Of an earlier turn of the assistant."""

    id: Annotated[str, StringConstraints(max_length=128)]
    type: Literal["function"]
    function: CalledFunction


class PromptMessage(StrictFields):
    """A turn of the system, the developer or the user."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None


class AssistantMessage(StrictFields):
    """A turn of the assistant; without content where it only called tools."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _says_or_calls_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise PydanticCustomError("content", "an assistant's message needs content")
        return self


class ToolMessage(StrictFields):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, StringConstraints(max_length=128)]


class Function(StrictFields):
    """A function that the model may call."""

    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=4096)] | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema. It is text for the prompt; nothing is compiled from it."""


class Tool(StrictFields):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function


class SamplingFields(StrictFields):
    """What both routes take. None means the default, as in OpenAI's API."""

    model: ModelName | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=2)] | None = None
    logit_bias: dict[TokenKey, Bias] | None = None
    stop: Stop | list[Stop] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: PlainText | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] = 0
    skip_special_tokens: bool = True
    return_token_ids: bool | None = None
    user: Label | None = None
    """A label for the client's own use; nothing reads it."""
    request_id: Label | None = None
    """A label for the log. The id of the request is made here."""


class ChatFields(SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[
        list[Annotated[PromptMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]], Field(min_length=1)
    ]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKEN_ID)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKEN_ID)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None


class CompletionFields(SamplingFields):
    """`POST /v1/completions`."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
