"""A conversation in a terminal: what a person types, and what is printed for it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cluster.display.printable import printable
from cluster.errors import DataError, EndpointError
from cluster.messages import Answer, Answerer, Message

if TYPE_CHECKING:  # the records of a sample need numpy, which a person who only talks need not wait for
    from actors.generation.rendering import PromptFormat
    from serving.chat.judge import Judge

COMMANDS = {
    "/score": "score the last answer with the reward model that --scorer names",
    "/history": "show the conversation so far",
    "/reset": "forget the conversation and begin a new one",
    "/help": "list these commands; begin a line with // to send one that starts with /",
    "/quit": "end; so does Ctrl-D",
}


class Conversation:
    """Turns of one person with one policy. In the plain format each line is a text of its own, which the policy continues."""

    def __init__(
        self,
        client: Answerer,
        write: Callable[[str], None],
        *,
        prompt_format: "PromptFormat" = "chat",
        system: str = "",
        judge: "Judge | None" = None,
    ) -> None:
        """`write` puts text on the screen, without a line end of its own."""
        self._client = client
        self._write = write
        self._prompt_format = prompt_format
        self._start = [Message(role="system", content=system)] if system else []
        self._judge = judge
        self._turns = list(self._start)

    def run(self, lines: Iterable[str]) -> None:
        """Take lines until they end or one is /quit. What goes wrong with one line is told, and the next is taken."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            try:
                self._take(text)
            except (EndpointError, DataError) as error:
                self._write(f"error: {printable(str(error))}\n")

    def _take(self, text: str) -> None:
        match text:
            case "":
                return
            case "/help":
                self._write("".join(f"{command:10}{meaning}\n" for command, meaning in COMMANDS.items()))
            case "/reset":
                self._turns = list(self._start)
                self._write("the conversation is forgotten\n")
            case "/history":
                said = [f"{turn.role}> {printable(turn.content)}\n" for turn in self._turns]
                self._write("".join(said) or "nothing is said yet\n")
            case "/score":
                self._score()
            case _ if text.startswith("/") and not text.startswith("//"):
                self._write(f"unknown command {text.split()[0]!r}; /help lists them\n")
            case _:
                self._answer(text.removeprefix("/") if text.startswith("//") else text)

    def _answer(self, text: str) -> None:
        """A turn counts from its first piece on, also where it breaks off or is stopped with Ctrl-C."""
        before = list(self._start) if self._prompt_format == "plain" else self._turns
        question, said, is_line_begun = Message(role="user", content=text), "", False
        try:
            with self._begin([*before, question]) as answer:
                version = f" v{answer.policy_version}" if answer.policy_version else ""
                is_line_begun = True
                self._write(f"{self._client.model}{version}> ")
                for piece in answer.pieces:
                    said += piece
                    self._write(printable(piece))
        except KeyboardInterrupt:
            is_line_begun = True  # a terminal has written ^C
            self._write(" (stopped)")
        finally:
            if said:
                self._turns = [*before, question, Message(role="assistant", content=said)]
            if is_line_begun:
                self._write("\n")

    def _begin(self, turns: list[Message]) -> AbstractContextManager[Answer]:
        return self._client.complete(turns[-1].content) if self._prompt_format == "plain" else self._client.chat(turns)

    def _score(self) -> None:
        if self._judge is None:
            self._write("no reward model: start `rayward chat` with --scorer FOLDER\n")
        elif self._turns == self._start:
            self._write("nothing to score yet\n")
        else:
            if not self._judge.is_loaded:
                self._write("loading the reward model ...\n")
            turns = self._turns if self._prompt_format == "chat" else self._turns[-2:]
            self._write(f"score {self._judge.score(turns):+.3f}, by {self._judge.folder}\n")


def typed_lines(ask: Callable[[], str], drop_line: Callable[[], object]) -> Iterator[str]:
    """What `ask` returns, until it raises `EOFError`, as `input` does at Ctrl-D. Ctrl-C gives up the line that is being typed."""
    while True:
        try:
            yield ask()
        except EOFError:
            return
        except KeyboardInterrupt:
            drop_line()
