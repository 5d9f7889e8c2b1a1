"""One endpoint that speaks the OpenAI API, asked over HTTP; answers arrive piece by piece."""

import ipaddress
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx

from cluster.display.printable import printable
from cluster.errors import ConfigError, EndpointError
from cluster.messages import Answer, Message

KEY_VARIABLE: Final = "RAYWARD_API_KEY"
VERSION_HEADER: Final = "X-Policy-Version"
CONTEXT_LENGTH_EXCEEDED: Final = "context_length_exceeded"  # OpenAI's code
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 330.0  # for each piece of a reply; an endpoint gives a request up after 300 s
SHOWN_CHARACTERS = 200  # of a reply that is not in the API's form
EVENT, DONE = "data:", "[DONE]"


class PolicyClient:
    """Implements `Answerer`. Asks the endpoint at `url` and no other host: it uses no proxy and follows no redirect."""

    def __init__(self, url: str, *, key: str = "", model: str = "", max_tokens: int, temperature: float | None = None) -> None:
        """`key` goes into the Authorization header. `model` empty: the first that the endpoint serves. `max_tokens` of an answer;
        `temperature` None leaves it to the endpoint.

        Raises `EndpointError` where no endpoint answers, `ConfigError` for a url or a key that cannot be used.
        """
        self.url = endpoint_url(url)
        self._sampling = {"max_tokens": max_tokens, **({} if temperature is None else {"temperature": temperature})}
        self._http = httpx.Client(
            headers=_key_headers(self.url, key),
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )
        self.model = model or self._first_model()

    @contextmanager
    def chat(self, messages: Sequence[Message]) -> Iterator[Answer]:
        """What the policy says next in a conversation."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        with self._stream("chat/completions", {"messages": turns}) as answer:
            yield answer

    @contextmanager
    def complete(self, text: str) -> Iterator[Answer]:
        """How the policy continues a text, without a chat template."""
        with self._stream("completions", {"prompt": text}) as answer:
            yield answer

    def _first_model(self) -> str:
        with self._reply("GET", "models") as response:
            try:
                return printable(str(json.loads(response.read())["data"][0]["id"]))
            except (ValueError, LookupError, TypeError) as error:
                raise EndpointError(f"{self.url}/models lists no model; is it an OpenAI-compatible endpoint?") from error

    @contextmanager
    def _stream(self, route: str, asked: dict[str, Any]) -> Iterator[Answer]:
        body = {"model": self.model, "stream": True, **self._sampling, **asked}
        with self._reply("POST", route, json=body) as response:
            yield Answer(policy_version=response.headers.get(VERSION_HEADER, ""), pieces=_pieces(response))

    @contextmanager
    def _reply(self, method: str, route: str, **content: Any) -> Iterator[httpx.Response]:
        """A good reply whose body is still to be read. Raises `EndpointError`."""
        try:
            with self._http.stream(method, f"{self.url}/{route}", **content) as response:
                if not response.is_success:
                    response.read()
                    raise EndpointError(_refusal(self.url, response))
                yield response
        except httpx.ConnectError as error:
            raise EndpointError(
                f"no endpoint answers at {self.url} ({error}); start one with `rayward serve RUN`, or give its URL"
            ) from error
        except httpx.TransportError as error:
            raise EndpointError(f"{self.url}: {type(error).__name__}: {error}") from error


def endpoint_url(url: str) -> str:
    """With scheme and `/v1`, as OpenAI's clients take it. Raises `ConfigError`."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parsed = httpx.URL(whole)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is not a URL: {error}; give one such as http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url!r} is not the URL of an endpoint; give one such as http://127.0.0.1:8000")
    if parsed.userinfo:
        raise ConfigError(f"the URL of the endpoint names a user or a password; put the key into {KEY_VARIABLE}")
    return whole.rstrip("/").removesuffix("/v1") + "/v1"


def _key_headers(url: str, key: str) -> dict[str, str]:
    """The key never stands in a message of ours."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{KEY_VARIABLE} holds spaces, line ends or characters that no key has; set it again")
    parsed = httpx.URL(url)
    if parsed.scheme == "http" and not _is_loopback(parsed.host):
        raise ConfigError(f"{url} is not encrypted, so the key in {KEY_VARIABLE} could be read on its way; use https or a tunnel")
    return {"Authorization": f"Bearer {key}"}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pieces(response: httpx.Response) -> Iterator[str]:
    """The text of a stream of events, until its `[DONE]`."""
    for line in response.iter_lines():
        data = line.removeprefix(EVENT).strip()
        if not line.startswith(EVENT):
            continue
        if data == DONE:
            return
        try:
            event = json.loads(data)
            if "error" in event:
                raise EndpointError(f"the endpoint broke the answer off: {event['error']['message']}")
            for choice in event["choices"]:  # empty in an event that only counts tokens
                yield choice.get("text") or choice.get("delta", {}).get("content") or ""
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            shown = repr(data[:SHOWN_CHARACTERS])
            raise EndpointError(f"the endpoint sent an event that the OpenAI API does not have: {shown}") from error
    raise EndpointError("the endpoint ended the answer too early")


def _refusal(url: str, response: httpx.Response) -> str:
    """What a reply that is no success says, with what to do about it."""
    code = None
    try:
        error = response.json()["error"]
        said, code = str(error["message"]), error.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        said = response.text[:SHOWN_CHARACTERS]
    said = printable(said)
    if code == CONTEXT_LENGTH_EXCEEDED:
        return f"this is longer than the policy can read; /reset forgets the conversation so far ({said})"
    match response.status_code:
        case 401 | 403:
            return f"{url} asks for a key: set {KEY_VARIABLE} to one that it knows ({response.status_code}: {said})"
        case 404:
            return f"{url} knows no such model or route; name a model with --model ({said})"
        case 429:
            return f"the endpoint is busy; try again in {response.headers.get('Retry-After', '1')} s ({said})"
    return f"the endpoint refused the request, {response.status_code}: {said}"
