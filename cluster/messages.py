"""What is said in a conversation, and by whom. Apart from the records of a sample, so that who only talks needs no arrays."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that has begun. Produced by an `Answerer`, consumed by whoever talks to it."""

    policy_version: str  # of the weights that sample it; empty where nobody says
    pieces: Iterator[str]  # its text; raises `RaywardError` where it breaks off


class Answerer(Protocol):
    """Whom a person talks to: an endpoint, or a model in this process."""

    model: str  # its name

    def chat(self, messages: Sequence[Message]) -> AbstractContextManager[Answer]:
        """What it says next in a conversation."""

    def complete(self, text: str) -> AbstractContextManager[Answer]:
        """How it continues a text, without a chat template."""
