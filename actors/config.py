"""Settings of what makes and judges text."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import Field, HttpUrl, IPvAnyNetwork, field_validator, model_validator

from actors.replicas import ReplicasConfig
from actors.user_code.function import user_function_problem
from cluster.config import StrictConfig
from cluster.host.processor import multiplies_bfloat16

DType = Literal["float32", "bfloat16", "float16"]


def fast_dtype(settings: dict[str, Any]) -> DType:
    """The default type of a part with `settings`: bfloat16 where its device multiplies it fast, float32 elsewhere.

    A part without `num_gpus` is taken to run on a processor like this one's.
    """
    return "bfloat16" if settings.get("num_gpus") or multiplies_bfloat16() else "float32"


BadLines = Literal["error", "skip"]
RunningRequests = Literal["finish", "keep"]  # completions in progress when new weights come
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class TaskPromptConfig(StrictConfig):
    """What every kind of task has: how its messages become a prompt."""

    prompt_format: Literal["plain", "chat"] = "chat"
    """plain: the messages' text as it stands, to be continued. chat: the model's own chat template."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longest prompt, in tokens of the policy."""
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    """What happens to a prompt longer than max_prompt_tokens; counted and reported. truncate_left: its last tokens stay."""


class FileTaskConfig(TaskPromptConfig):
    """What the kinds of task have that are read from a file of one JSON object a line."""

    path: str
    """The file."""
    bad_lines: BadLines = "error"
    """What happens to a line that is no task of this kind. skip: counted and reported."""


class MovieReviewTaskConfig(TaskPromptConfig):
    """Continue a movie-review snippet. The judgements come from `rayward data fetch movie-reviews`."""

    kind: Literal["movie_reviews"] = "movie_reviews"
    num_prompt_words: int = Field(5, ge=1)
    """Words of a snippet that become the prompt; snippets with fewer than twice as many are left out."""
    prompt_format: Literal["plain", "chat"] = "plain"
    max_prompt_tokens: int = Field(32, ge=1)


class JsonlTaskConfig(FileTaskConfig):
    """Tasks from a file: one object a line, {"prompt": text} or {"messages": [...]}, optional "reference" and "id"."""

    kind: Literal["jsonl"] = "jsonl"


class GSM8KTaskConfig(FileTaskConfig):
    """Grade-school word problems from a file: {"question", "answer": "... #### N"} a line. arXiv:2110.14168."""

    kind: Literal["gsm8k"] = "gsm8k"
    instruction: str = "Reason step by step. End with the answer as a number after ####."
    """Put below the question; empty puts nothing there."""


class IFEvalTaskConfig(FileTaskConfig):
    """Instructions whose keeping can be checked, from a file in the format of IFEval's input_data.jsonl. arXiv:2311.07911."""

    kind: Literal["ifeval"] = "ifeval"
    unsupported: Literal["error", "drop"] = "error"
    """A task with a constraint that no checker of ours knows. drop: left out and reported."""


class GeneratedTaskConfig(TaskPromptConfig):
    """What the kinds of task have that are drawn from a seed and not read."""

    num_train: int = Field(1000, ge=1)
    """Problems to train on."""
    num_held_out: int = Field(100, ge=1)
    """No held-out problem is also a training problem."""
    seed: int = Field(0, ge=0)
    """Another seed draws other problems."""


class ArithmeticTaskConfig(GeneratedTaskConfig):
    """A few integers to add, subtract or multiply: "3 + 4 =", whose reference is "7"."""

    kind: Literal["arithmetic"] = "arithmetic"
    operations: tuple[Literal["+", "-", "*"], ...] = Field(("+",), min_length=1)
    """Drawn at random for each problem."""
    min_operand: int = Field(0, ge=0)
    """Smallest integer in a problem."""
    max_operand: int = Field(99, ge=0, le=9999)
    """Largest integer in a problem."""
    num_terms: int = Field(2, ge=2, le=4)
    """Integers in a problem."""
    num_examples: int = Field(0, ge=0, le=32)
    """Solved problems above the question, the same in every prompt: they show a base model the format."""
    prompt_format: Literal["plain", "chat"] = "plain"
    max_prompt_tokens: int = Field(256, ge=1)

    @property
    def num_problems(self) -> int:
        """How many different problems these settings allow."""
        num_operands = self.max_operand - self.min_operand + 1
        return num_operands**self.num_terms * len(self.operations) ** (self.num_terms - 1)

    @model_validator(mode="after")
    def _there_are_enough_problems(self) -> Self:
        if self.min_operand > self.max_operand:
            raise ValueError(f"min_operand={self.min_operand} is more than max_operand={self.max_operand}")
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations={list(self.operations)} names one twice")
        wanted = self.num_train + self.num_held_out + self.num_examples
        if wanted > self.num_problems:
            raise ValueError(
                f"num_train + num_held_out + num_examples = {wanted}, but there are only {self.num_problems} different problems; "
                f"raise max_operand={self.max_operand} or num_terms={self.num_terms}, or lower the numbers"
            )
        return self


class ReasoningGymTaskConfig(GeneratedTaskConfig):
    """Tasks that the package `reasoning-gym` generates. arXiv:2505.24760."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = Field(min_length=1)
    """Its name there, for example chain_sum or basic_arithmetic."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that data set, as reasoning-gym names them."""
    instruction: str = "Answer with the result only."
    """Put below the question; empty puts nothing there."""

    @field_validator("options")
    @classmethod
    def _own_settings_are_not_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        own = sorted({"seed", "size"} & set(options))
        if own:
            raise ValueError(f"{' and '.join(own)} cannot be set here; use task.seed, task.num_train and task.num_held_out")
        return options


TaskConfig = Annotated[
    MovieReviewTaskConfig | JsonlTaskConfig | GSM8KTaskConfig | IFEvalTaskConfig | ArithmeticTaskConfig | ReasoningGymTaskConfig,
    Field(discriminator="kind"),
]


class SamplingConfig(StrictConfig):
    """How rollouts are drawn."""

    temperature: float = Field(1.0, ge=0, le=2)
    """The learner divides its logits by the same temperature. 0 is greedy, for evaluation only."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: draw from the likeliest tokens that make up this probability. 1 draws from all."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions of each prompt in a step: the group size of methods that compare them."""
    max_completion_tokens: int = Field(32, ge=1)
    """A completion is cut at this length."""


GPU_ENGINE_DEFAULTS = {"max_model_tokens": 4096, "max_num_sequences": 256, "enforce_eager": False}
GPU_MEMORY_FRAC = 0.9  # of the share of a device that an engine holds; the rest is for CUDA graphs and fragments


class GeneratorConfig(ReplicasConfig):
    """The pool of vLLM engines. Defaults are for CPU; with `num_gpus`, those of `GPU_ENGINE_DEFAULTS` take their place."""

    name: str = Field("generator", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """What its engines are called, with a number each; that of the kind, where a run has several (`generators`)."""
    num_cpus: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for each replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that each replica holds; 0 runs vLLM's CPU build. A fraction shares a device."""
    num_threads: int = Field(2, ge=1)
    """OpenMP threads of a CPU engine."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Devices over which each engine splits the model."""
    devices: Literal["one_node", "any_node"] = "one_node"
    """Where those of one engine may be. any_node: on several nodes, for models too large for one; much slower."""
    dtype: DType = Field(default_factory=fast_dtype)
    """bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    max_model_tokens: int = Field(256, ge=2)
    """Longest prompt + completion."""
    max_num_sequences: int = Field(64, ge=1)
    """Sequences that one engine decodes at the same time."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for the key-value cache of a CPU engine."""
    gpu_memory_utilization: float = Field(GPU_MEMORY_FRAC, gt=0, lt=1)
    """Share of a GPU's memory that an engine takes. On a shared GPU the default is that part of the engine's own share."""
    enforce_eager: bool = True
    """False compiles the model and records CUDA graphs: slower to start, faster to generate. False is the default on a GPU."""
    sleep_level: Literal[1, 2] | None = None
    """Of placement=shared. 1, the default there: weights go to host memory. 2: they are dropped, and sent again at each turn."""
    weight_transfer: Literal["shm", "nccl", "ipc"] = "shm"
    """How new weights come. shm: a file in shared memory; other hosts fetch it once. nccl: between GPUs. ipc: on a shared GPU."""

    @property
    def num_parts(self) -> int:
        """Of one engine, that may be on different nodes."""
        return self.tensor_parallel_size if self.devices == "any_node" else 1

    @model_validator(mode="before")
    @classmethod
    def _defaults_follow_the_device(cls, values: Any) -> Any:
        num_gpus = values.get("num_gpus") if isinstance(values, dict) else None
        if not isinstance(num_gpus, int | float) or num_gpus <= 0:  # what is no number is refused by the field
            return values
        share = {"gpu_memory_utilization": GPU_MEMORY_FRAC * min(1, num_gpus)}
        return GPU_ENGINE_DEFAULTS | share | values

    @model_validator(mode="after")
    def _backend_fits_the_device(self) -> Self:
        if self.weight_transfer == "ipc" and self.largest > self.num_replicas:
            raise ValueError("weight_transfer='ipc' needs a learner rank on each engine's GPU from the start: no max_replicas")
        if self.weight_transfer != "shm" and self.num_gpus == 0:
            raise ValueError(f"weight_transfer={self.weight_transfer!r} needs GPUs, but num_gpus=0; use weight_transfer=shm")
        if self.devices == "any_node" and (self.weight_transfer != "nccl" or self.num_gpus != self.tensor_parallel_size):
            raise ValueError(
                "devices=any_node needs weight_transfer=nccl, for files do not reach the other nodes, and one GPU for each of "
                f"tensor_parallel_size={self.tensor_parallel_size}; got {self.weight_transfer}, num_gpus={self.num_gpus:g}"
            )
        if 0 < self.num_gpus < self.tensor_parallel_size and self.tensor_parallel_size > 1:
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} needs as many GPUs a replica, but num_gpus={self.num_gpus:g}"
            )
        return self


class SupervisionConfig(StrictConfig):
    """How lost generators and scorers are noticed and replaced."""

    deadline_s: float = Field(60.0, gt=0)
    """One that has work and makes no progress for so long is lost, even if its process lives. A generated token and a scored
    trajectory are progress; a scorer's own time-out is waited for."""
    publish_deadline_s: float = Field(600.0, gt=0)
    """The same for new weights, while which no token is generated. Raise it for models that load longer."""
    start_deadline_s: float = Field(900.0, gt=0)
    """One that has not loaded its model after so long, at the start of a run or as a replacement, is lost, too. Raise it for
    models that load longer."""
    max_losses: int = Field(3, ge=0)
    """Of one and its replacements, with nothing finished in between; one more ends the run."""


class RewardModelScorerConfig(ReplicasConfig):
    """A reward model: any Hugging Face trunk with a scalar head, with its own tokenizer."""

    kind: Literal["reward_model"] = "reward_model"
    name: str = "reward_model"
    """Its key in the breakdown of a reward."""
    model: str
    """A folder written by the reward-model learner, or a sequence-classification model with one label."""
    weight: float = 1.0
    """The reward is the sum over scorers of weight times score."""
    num_cpus: float = Field(0.5, ge=0)
    """CPUs that Ray reserves for each replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that each replica holds; a fraction shares a device, 0 is the CPU."""
    num_threads: int = Field(2, ge=1)
    """Torch threads of a replica on CPU."""
    dtype: DType = Field(default_factory=fast_dtype)
    """bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    batch_size: int = Field(64, ge=1)
    """Texts per forward pass."""
    max_tokens: int = Field(256, ge=2)
    """Longest prompt + completion + end-of-sequence token, in tokens of the reward model."""
    overlong: Literal["unscored", "truncate"] = "unscored"
    """What happens to a longer text. unscored: its trajectory has no score and is left out. truncate: its first tokens
    are judged, as in training, and the log counts such texts."""


class RewardFunctionScorerConfig(ReplicasConfig):
    """What the scorers have that hold no model: functions of ours, of the user, or behind HTTP."""

    weight: float = 1.0
    """The reward is the sum over scorers of weight times score."""
    num_cpus: float = Field(0.1, ge=0)
    """CPUs that Ray reserves for each replica."""


RewardFunctionName = Literal[
    "length",
    "repetition",
    "vader",
    "answer_match",
    "final_number",
    "first_number",
    "math_verify",
    "ifeval",
    "ifeval_strict",
]


class BuiltInFunctionScorerConfig(RewardFunctionScorerConfig):
    """A reward function of ours, by name."""

    kind: Literal["function"] = "function"
    function: RewardFunctionName
    """length: completion tokens. repetition: share of repeated bigrams. vader: lexicon sentiment.
    answer_match: equals the reference. final_number, first_number: the last or first number is the reference.
    math_verify: mathematically equal to the reference. ifeval: share of constraints kept; ifeval_strict: all of them are."""

    @property
    def name(self) -> str:
        """Its key in the breakdown of a reward."""
        return self.function


class PythonScorerConfig(RewardFunctionScorerConfig):
    """A reward function of the user. Each replica runs it in a process of its own, which is killed when it hangs."""

    kind: Literal["python"] = "python"
    name: str = Field("python", min_length=1)
    """Its key in the breakdown of a reward."""
    path: str
    """package.module:function, or the name of an entry point in the group rayward.reward_functions."""
    batched: bool = False
    """False: called with one Trajectory, returns a number. True: called with a list of them, returns as many numbers."""
    timeout_s: float = Field(10.0, gt=0)
    """For one call; the import of the module does not count."""
    max_concurrency: int = Field(16, ge=1)
    """Calls of an `async def` function that a replica awaits at the same time."""
    max_memory_gib: float | None = Field(8.0, gt=0)
    """Address space of its process; None is no limit, which a function that uses a GPU needs."""
    max_file_mib: float = Field(64.0, gt=0)
    """Of any file that it writes."""
    max_processes: int = Field(512, ge=1)
    """Processes that it may have at a time, itself among them and each thread counted. Beyond that, all of them are killed."""
    separate_user: bool = True
    """Where Rayward runs as root, run the function as a user of its own. False for a function that reads files of root."""
    environment: tuple[str, ...] = ()
    """Variables of this machine that the function may read, such as a key of its own. Others are hidden from it."""

    @field_validator("path")
    @classmethod
    def _can_be_found(cls, path: str) -> str:
        problem = user_function_problem(path)
        if problem is not None:
            raise ValueError(problem)
        return path


class HttpScorerConfig(RewardFunctionScorerConfig):
    """A scorer behind HTTP. Request: {"items": [{"task_id", "prompt", "completion", "reference"}]}; reply: {"scores": [...]}."""

    kind: Literal["http"] = "http"
    name: str = Field("http", min_length=1)
    """Its key in the breakdown of a reward."""
    url: HttpUrl
    """Redirects are not followed."""
    allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    """Hosts that the url may name, as they stand in it."""
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    """Networks that are not public and may be asked, such as 10.0.0.0/8. The host is resolved before each request, and outside
    them private, link-local and loopback addresses are refused. 127.0.0.1, localhost and [::1] may always be loopback."""
    timeout_s: float = Field(30.0, gt=0)
    """For connecting, for each wait for bytes, and for a whole reply."""
    max_retries: int = Field(3, ge=0, le=20)
    """After connection errors, time-outs, 429 and 5xx; the wait doubles each time."""
    batch_size: int = Field(32, ge=1)
    """Trajectories per request."""
    headers_from_env: dict[str, str] = Field(default_factory=dict)
    """Header name -> name of the environment variable that holds its value; secrets never stand in a configuration."""

    @field_validator("url")
    @classmethod
    def _url_holds_no_secret(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password:
            raise ValueError("names a user or a password; send credentials with headers_from_env")
        return url

    @field_validator("headers_from_env")
    @classmethod
    def _variables_are_set(cls, headers: dict[str, str]) -> dict[str, str]:
        missing = [f"{variable} (for {header})" for header, variable in headers.items() if not os.environ.get(variable)]
        if missing:
            raise ValueError(f"environment variables are not set: {', '.join(missing)}")
        return headers

    @model_validator(mode="after")
    def _host_is_allowed(self) -> Self:
        host = self.url.host
        if host not in self.allowed_hosts:
            raise ValueError(f"url names the host {host!r}, which is not one of allowed_hosts={list(self.allowed_hosts)}; add it")
        if self.headers_from_env and self.url.scheme == "http" and host not in LOOPBACK_HOSTS:
            raise ValueError(f"headers_from_env would travel unencrypted to {host!r}; use https")
        return self


ScorerConfig = Annotated[
    RewardModelScorerConfig | BuiltInFunctionScorerConfig | PythonScorerConfig | HttpScorerConfig, Field(discriminator="kind")
]
