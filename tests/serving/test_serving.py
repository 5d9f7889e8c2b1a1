"""One `rayward serve` with the tiny model, asked through the OpenAI client, and terminated at the end."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.sources.models import resolve_model
from cluster.storage.feedback import FeedbackStore
from tests.serving.tiny_contract import seal_tiny

MAX_MODEL_TOKENS = 128
PROMPT = "The film is"
VERSION_HEADER = "X-Policy-Version"
SWAP_TIMEOUT_S = 60.0

pytestmark = [pytest.mark.cold_start, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run called tiny with one policy."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(resolve_model("tiny"), run / "policies" / "v000001")
    return run


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "feedback.db"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running `rayward serve`."""

    process: subprocess.Popen[str]
    base_url: str

    def is_healthy(self) -> bool:
        return httpx.get(f"{self.base_url}/health").status_code == 200

    def end(self) -> str:
        """Terminate it; what it says from here on."""
        self.process.terminate()
        return self.process.communicate(timeout=120)[1]


def start_endpoint(run_dir: Path, *settings: str) -> Endpoint:
    process = subprocess.Popen(
        [sys.executable, "-m", "rayward", "serve", str(run_dir), "--port", "0", *settings],
        cwd=Path(__file__).resolve().parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        return Endpoint(process, wait_for_line(process, r"answers at (http\S+)/v1"))
    except BaseException:  # the limit of a test, for example
        process.terminate()
        process.communicate()
        raise


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> str:
    """The first group of `pattern` in what the process says from here on."""
    seen = []
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(pattern, line):
            return found.group(1)
        seen.append(line)
    raise AssertionError(f"it has ended and never said {pattern}: {''.join(seen)}")


@pytest.fixture(scope="module")
def endpoints(
    run_dir: Path,
    feedback: Path,
    no_ray: None,
    ctrl_c_reaches_children: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Endpoint]]:
    """The endpoint that runs; another where a test has ended it, so that tests pass in any order."""
    started: list[Endpoint] = []
    length, state = f"max_model_tokens={MAX_MODEL_TOKENS}", f"state_dir={tmp_path_factory.mktemp('state')}"

    def running() -> Endpoint:
        if not started or started[-1].process.poll() is not None:
            settings = ("follow=true", length, "kv_cache_gib=0.1", "dtype=float32", f"feedback={feedback}", state)
            started.append(start_endpoint(run_dir, *settings))
        return started[-1]

    yield running
    for endpoint in started:
        if endpoint.process.poll() is None:
            endpoint.end()


@pytest.fixture
def served(endpoints: Callable[[], Endpoint]) -> Endpoint:
    return endpoints()


@pytest.fixture
def client(served: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0)


def test_models_are_listed_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_health_counts_what_runs(served: Endpoint) -> None:
    reply = httpx.get(f"{served.base_url}/health")
    replicas = {"PolicyIngress": 1, "PolicyServer": 1}
    assert (reply.status_code, reply.json()) == (200, {"status": "ok", "replicas": replicas, "set_aside": {}})


def test_an_engine_on_cpus_is_one_process(served: Endpoint) -> None:
    children = psutil.Process(served.process.pid).children(recursive=True)
    titles = [command[0] for child in children if (command := child.cmdline())]
    assert [title for title in titles if title.startswith("VLLM::")] == ["VLLM::EngineCore"]


def test_chat_completion_is_bounded_and_counted(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=4)
    choice = completion.choices[0]
    assert choice.message.role == "assistant"
    assert choice.finish_reason in {"stop", "length"}
    assert completion.usage is not None
    assert 1 <= completion.usage.completion_tokens <= 4


def test_stream_adds_up_to_the_whole_completion(client: openai.OpenAI) -> None:
    def ask(*, stream: bool) -> object:
        return client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=16,
            temperature=0,
            stream=stream,
            extra_body={"ignore_eos": True, "skip_special_tokens": False},
        )

    chunks = [chunk.choices[0] for chunk in ask(stream=True)]  # type: ignore[attr-defined]
    text = "".join(chunk.delta.content or "" for chunk in chunks)
    assert text
    assert text == ask(stream=False).choices[0].message.content  # type: ignore[attr-defined]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]


def test_seeded_requests_repeat_and_leave_the_engine_alive(served: Endpoint, client: openai.OpenAI) -> None:
    def ask(index: int) -> str:
        prompt = chr(ord("a") + index) * (MAX_MODEL_TOKENS - 8)  # no two share a prefix
        completion = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=1, seed=index)
        return completion.choices[0].text

    alone = ask(9)
    with ThreadPoolExecutor(max_workers=24) as pool:  # 24 x 120 prompt tokens are more than one prefill step takes
        together = list(pool.map(ask, range(24)))
    assert len(together) == 24
    assert ask(9) == alone
    assert served.is_healthy()


@pytest.mark.parametrize("num_tokens", [MAX_MODEL_TOKENS, MAX_MODEL_TOKENS + 1, 20 * MAX_MODEL_TOKENS])
def test_a_prompt_beyond_the_context_is_the_clients_error(served: Endpoint, client: openai.OpenAI, num_tokens: int) -> None:
    """Both lengths are named; of a prompt that is too long by its characters alone, those."""
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model="tiny", prompt="x" * num_tokens, max_tokens=1)
    assert refusal.value.code == "context_length_exceeded"
    for length in (MAX_MODEL_TOKENS, num_tokens):
        assert re.search(rf"\b{length}\b", refusal.value.message)
    assert served.is_healthy()


def test_a_prompt_that_leaves_room_for_one_token_gets_one(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="tiny", prompt="x" * (MAX_MODEL_TOKENS - 1), max_tokens=16)
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (MAX_MODEL_TOKENS - 1, 1)


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x", max_tokens=1)


def test_newer_weights_are_served_without_a_stop(served: Endpoint, client: openai.OpenAI, run_dir: Path) -> None:
    """The header names the version, and the tokens are what transformers makes of its folder.

    In between, a version whose contract the engine does not keep is loaded, found out, and set aside.
    """

    def ask() -> tuple[str, str, float]:
        reply = client.completions.with_raw_response.create(
            model="tiny", prompt=PROMPT, max_tokens=1, temperature=0, logprobs=1, extra_body={"skip_special_tokens": False}
        )
        choice = reply.parse().choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs
        return reply.headers[VERSION_HEADER], choice.text, float(choice.logprobs.token_logprobs[0] or 0)

    folders = [run_dir / "policies" / f"v00000{version}" for version in (1, 3)]
    before = ask()
    write_other_weights(folders[0], run_dir / "policies" / "v000002", seed=1, shift=0.05)
    deadline = time.monotonic() + SWAP_TIMEOUT_S
    while httpx.get(f"{served.base_url}/health").json()["set_aside"] != {"v000002": "contract"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask() == before
    write_other_weights(folders[0], folders[1], seed=2)
    deadline = time.monotonic() + SWAP_TIMEOUT_S
    while (after := ask())[0] == before[0]:
        assert time.monotonic() < deadline
    for version, folder, (header, text, logprob) in zip(("1", "3"), folders, (before, after), strict=True):
        likeliest, its_logprob = likeliest_token(folder)
        assert (header, text) == (version, likeliest)
        assert logprob == pytest.approx(its_logprob, abs=1e-3)
    assert before[1:] != after[1:]
    assert wait_for_line(served.process, r"policy version (\d+) is served") == "3"


def write_other_weights(policy: Path, other: Path, *, seed: int, shift: float = 0.0) -> None:
    """As an export does: whole when it appears. `shift`: nats by which its contract lies."""
    draft = other.with_name("draft")
    shutil.copytree(policy, draft)
    tensors = load_file(draft / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    save_file(moved, draft / "model.safetensors", metadata={"format": "pt"})
    seal_tiny(draft, policy_version=int(other.name.removeprefix("v")), shift=shift)
    draft.rename(other)


def likeliest_token(folder: Path) -> tuple[str, float]:
    """The next one after PROMPT, and its log-probability in nats."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logprobs_V = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].log_softmax(-1)
    return tokenizer.decode([int(logprobs_V.argmax())]), float(logprobs_V.max())


def test_routes_that_a_policy_does_not_need_do_not_exist(served: Endpoint) -> None:
    for route in ("/v1/embeddings", "/tokenize", "/v1/score", "/v1/audio/transcriptions"):
        request = urllib.request.Request(
            served.base_url + route, data=json.dumps({"model": "tiny"}).encode(), headers={"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(request)
        assert answer.value.code == 404


def test_feedback_is_kept_beside_the_policy(served: Endpoint, feedback: Path) -> None:
    response = httpx.post(
        f"{served.base_url}/v1/feedback",
        headers={"Idempotency-Key": "first"},
        json={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "What?"},
    )
    assert response.status_code == 200, response.text
    assert [record.feedback_id for record in FeedbackStore(feedback).records()] == [response.json()["id"]]


def test_a_terminated_endpoint_leaves_no_process(served: Endpoint) -> None:
    """Last of this file, because a test that follows starts another."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert any("PolicyServer" in " ".join(child.cmdline()) for child in children)
    said = served.end()
    assert served.process.returncode == 130, said
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
