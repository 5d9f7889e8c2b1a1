"""What is refused before anything starts, and which policy of a run is served."""

import json
import logging
import shutil
import socket
from pathlib import Path

import numpy
import pytest
import ray
from pydantic import ValidationError
from safetensors.numpy import save_file

from actors.sources.models import resolve_model
from cluster.config import parse_config
from cluster.errors import ConfigError, DataError, WeightMismatchError
from cluster.processes.runtime import RaySession
from serving.app import callers_logging_kept, serve_policy
from serving.config import KeyQuota, ServeConfig
from serving.guard.keys.key_file import add_key, default_key_file, revoke_key
from serving.policy_folder import PolicyFolder, check_same_model, check_served_by_engine, resolve_policy, served_model
from serving.versions.policy_check import BadPolicyError, check_policy

pytestmark = pytest.mark.usefixtures("no_ray")  # where one runs, a policy is served on it

PARTS = ("config.json", "model.safetensors", "tokenizer.json")


def _policy(folder: Path, parts: tuple[str, ...] = PARTS) -> Path:
    folder.mkdir(parents=True)
    for part in parts:
        (folder / part).write_text('{"max_position_embeddings": 512}')
    return folder


def _must_not_start(**_: object) -> RaySession:
    raise AssertionError("Ray was started")


@pytest.mark.parametrize("host", ["::", "example.org", "", "127.0.0.1:80"])
def test_a_host_is_an_address(host: str) -> None:
    with pytest.raises(ConfigError, match="not an IPv4 address"):
        parse_config(ServeConfig, {"model": "x", "host": host}, source="test")


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.0.0.53", True), ("localhost", True), ("0.0.0.0", False), ("192.0.2.7", False)],
)
def test_loopback_is_told_from_the_rest(host: str, is_loopback: bool) -> None:
    assert ServeConfig(model="x", host=host).is_loopback is is_loopback


@pytest.mark.parametrize("origin", ["*", "chat.example.org", "https://chat.example.org/", "https://*.example.org", "null"])
def test_an_origin_is_named_whole(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin"):
        parse_config(ServeConfig, {"model": "x", "cors_origins": [origin]}, source="test")


def test_others_are_served_with_keys_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before Ray starts: no file of keys, one without keys, one that others can read, and one that is named on loopback."""
    policy = str(_policy(tmp_path / "policy"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = default_key_file()
    assert path == tmp_path / "rayward" / "keys.json"

    def refusal(**settings: str) -> str:
        with pytest.raises(ConfigError) as refused:
            serve_policy(ServeConfig(model=policy, port=0, **settings), start=_must_not_start)
        return str(refused.value)

    assert "keys.json cannot be read" in refusal(host="0.0.0.0")
    assert "other.json cannot be read" in refusal(keys=str(tmp_path / "other.json"))
    add_key(path, "laptop")
    path.chmod(0o644)
    assert "chmod 600" in refusal(host="0.0.0.0")
    path.chmod(0o600)
    with pytest.raises(AssertionError, match="Ray was started"):  # nothing else is missing
        serve_policy(ServeConfig(model=policy, port=0, host="0.0.0.0"), start=_must_not_start)
    revoke_key(path, "laptop")
    assert "has none" in refusal(host="0.0.0.0")


def test_what_a_key_may_have_in_progress_follows_the_device() -> None:
    assert ServeConfig(model="m", num_replicas=2).quota.max_streams == 8
    assert ServeConfig(model="m", num_gpus=1).quota.max_streams == 16
    assert ServeConfig(model="m", quota=KeyQuota(requests_per_minute=7)).quota == KeyQuota(requests_per_minute=7, max_streams=4)
    assert ServeConfig.model_validate({"model": "m", "quota": {"max_streams": 3}}).quota.max_streams == 3
    with pytest.raises(ValidationError, match="num_replicas"):
        ServeConfig.model_validate({"model": "m", "num_replicas": "many"})


def test_each_replica_and_the_queue_have_places() -> None:
    config = ServeConfig(model="tiny", num_replicas=3, max_ongoing_requests=4, max_queued_requests=5)
    assert config.num_engine_places == 3 * 4 + 5


def test_a_split_needs_as_many_gpus() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size=2 needs as many GPUs a replica, but num_gpus=1"):
        parse_config(ServeConfig, {"model": "x", "tensor_parallel_size": 2, "num_gpus": 1}, source="test")


def test_port_in_use_is_named_before_ray_starts(tmp_path: Path) -> None:
    policy = _policy(tmp_path / "policy")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1: .*--port"):
            serve_policy(ServeConfig(model=str(policy), port=port), start=_must_not_start)
    assert not ray.is_initialized()


def test_too_many_cpus_are_refused_before_ray_starts(tmp_path: Path) -> None:
    policy = _policy(tmp_path / "policy")
    with pytest.raises(ConfigError, match="placement needs 100000 CPUs"):
        serve_policy(ServeConfig(model=str(policy), port=0, num_cpus=100_000), start=_must_not_start)


def test_the_newest_complete_version_of_a_run_is_served(tmp_path: Path) -> None:
    policies = tmp_path / "run-1" / "policies"
    _policy(policies / "v000002")
    newest = _policy(policies / "v000010")
    _policy(policies / "v000011", parts=("config.json", "tokenizer.json"))  # no weights
    _policy(policies / "tmp-000012-ab")  # never moved into place
    found = resolve_policy(str(tmp_path / "run-1"))
    assert (found.path, found.name) == (newest, "run-1")


def test_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    for version in ("v999999", "v1000000"):
        _policy(tmp_path / "policies" / version)
    assert resolve_policy(str(tmp_path)).path.name == "v1000000"


def test_a_policy_folder_is_served_itself(tmp_path: Path) -> None:
    alone = _policy(tmp_path / "my-model")
    of_run = _policy(tmp_path / "run-2" / "policies" / "v000003")
    assert (resolve_policy(str(alone)).path, resolve_policy(str(alone)).name) == (alone, "my-model")
    assert (resolve_policy(str(of_run)).path, resolve_policy(str(of_run)).name) == (of_run, "run-2")


def test_a_language_model_of_ones_own_is_served_from_its_run(tmp_path: Path) -> None:
    folder = _policy(tmp_path / "own" / "language_model")
    found = resolve_policy(str(tmp_path / "own"))
    assert (found.path, found.name, found.policy_version) == (folder, "own", None)
    check_served_by_engine(found, 512)


def test_a_network_that_no_engine_knows_is_refused(tmp_path: Path) -> None:
    folder = _policy(tmp_path / "own" / "language_model")
    (folder / "config.json").write_text('{"model_type": "rayward_lstm"}')
    with pytest.raises(ConfigError, match=r"model_type=rayward_lstm, which no engine knows.*rayward chat .*language_model"):
        check_served_by_engine(resolve_policy(str(tmp_path / "own")), 512)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        resolve_policy(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"has no \*\.safetensors, tokenizer"):
        resolve_policy(str(_policy(tmp_path / "half", parts=("config.json",))))
    (tmp_path / "new-run" / "policies").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no complete policy"):
        resolve_policy(str(tmp_path / "new-run"))


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    policy = resolve_policy(str(_policy(tmp_path / "policy")))
    check_served_by_engine(policy, 512)
    with pytest.raises(ConfigError, match="max_model_tokens=513 is more than the 512 positions"):
        check_served_by_engine(policy, 513)


def test_only_a_run_can_be_followed(tmp_path: Path) -> None:
    policy = _policy(tmp_path / "policy")
    with pytest.raises(ConfigError, match="follow=true needs a run directory"):
        serve_policy(ServeConfig(model=str(policy), port=0, follow=True), start=_must_not_start)


def test_the_tokenizer_of_another_model_is_refused_before_ray_starts(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(resolve_model("tiny"), policy)
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(DataError, match="are of different models"):
        serve_policy(ServeConfig(model=str(policy), port=0), start=_must_not_start)


def test_a_policy_knows_its_run_and_version(tmp_path: Path) -> None:
    folder = _policy(tmp_path / "run" / "policies" / "v000010")
    assert resolve_policy(str(tmp_path / "run")) == PolicyFolder(path=folder.resolve(), name="run", policy_version=10)
    assert resolve_policy(str(_policy(tmp_path / "other"))).policy_version is None


def test_the_adapter_of_a_run_is_served_as_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    start = resolve_model("tiny")
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run" / "policies" / "v000005"
    model = AutoModelForCausalLM.from_pretrained(start)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    policy = resolve_policy(str(tmp_path / "run"))
    assert (policy.name, policy.policy_version) == ("run", 5)
    assert policy.path.parent == tmp_path / "cache" / "merged"
    assert served_model(policy.path).shapes == served_model(Path(start)).shapes
    with pytest.raises(BadPolicyError, match=r"v000005 is an adapter, .*; export with export\.weights=merged"):
        check_policy(folder, None)
    check_policy(policy.path, None)


def _copies(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("served", "newer"):
        shutil.copytree(resolve_model("tiny"), tmp_path / name)
    return tmp_path / "served", tmp_path / "newer"


def test_a_newer_policy_with_the_same_tensors_and_tokenizer_can_be_taken(tmp_path: Path) -> None:
    served, newer = _copies(tmp_path)
    check_same_model(newer, served_model(served))


def test_a_newer_policy_with_other_tensors_cannot_be_taken(tmp_path: Path) -> None:
    served, newer = _copies(tmp_path)
    save_file({"one": numpy.zeros(3, dtype=numpy.float32)}, newer / "model.safetensors")
    with pytest.raises(WeightMismatchError, match="does not hold the tensors of .*missing, unknown or of another shape"):
        check_same_model(newer, served_model(served))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_newer_policy_with_another_tokenizer_cannot_be_taken(tmp_path: Path, file: str) -> None:
    served, newer = _copies(tmp_path)
    with (newer / file).open("a") as tail:
        tail.write("\n")
    with pytest.raises(WeightMismatchError, match="another tokenizer or chat template"):
        check_same_model(newer, served_model(served))


def test_a_newer_policy_that_is_cut_off_cannot_be_taken(tmp_path: Path) -> None:
    served, newer = _copies(tmp_path)
    weights = newer / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        check_same_model(newer, served_model(served))


def test_an_import_cannot_take_over_the_log() -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with callers_logging_kept():
        root.handlers = [logging.NullHandler()]
        root.setLevel(logging.DEBUG)
        assert not root.isEnabledFor(logging.INFO)
    assert (root.handlers, root.level) == (handlers, level)
    assert root.isEnabledFor(logging.CRITICAL)


def test_a_run_that_is_followed_is_served_from_its_newest_good_version(tmp_path: Path) -> None:
    """The newest is bad; the next one is refused for what a configuration asks of it, before Ray starts."""
    policies = tmp_path / "run" / "policies"
    for name in ("v000001", "v000002"):
        _policy(policies / name)
    (policies / "v000002" / "serving_contract.json").write_text("{")
    (policies / "v000001" / "config.json").write_text('{"max_position_embeddings": 8}')
    config = ServeConfig(model=str(tmp_path / "run"), follow=True, state_dir=str(tmp_path / "state"))
    with pytest.raises(ConfigError, match="8 positions of the model in .*v000001"):
        serve_policy(config)
