"""What is refused before the first role starts, and how roles are connected once they have."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.generation.adapter_generator import AdapterSlots
from actors.sources.models import model_digest
from cluster.errors import ConfigError
from cluster.processes.placement import Seat
from cluster.processes.reservations.seats import Seats
from cluster.storage.serving_contract import ContractText
from learners.run import composition
from learners.run.session import Session
from learners.settings.run import PolicyRunConfig, load_run_config
from learners.steps.shared_driver import LearnerInTurn
from learners.weights.link import LinkPlan

CONFIG = Path(composition.__file__).parents[2] / "configs" / "train" / "tiny.yaml"


class Roles:
    """Stands for each role in turn, ready at once."""

    def __init__(self) -> None:
        self.plans: list[LinkPlan] = []

    def wait_until_ready(self) -> int:
        return 0

    def connect(self, plan: LinkPlan) -> None:
        self.plans.append(plan)

    def feed_new_ones(self, send_again: object) -> None: ...

    def send_again(self, generator: object) -> None: ...


class AnySeat:
    """Stands for `Seats`: there is room for everybody, and no Ray."""

    def options(self, name: str, seat: Seat) -> dict[str, Any]:
        return dict(seat[0])

    def give_back(self, name: str) -> None: ...


def test_weights_over_devices_have_the_deadline_of_a_publication() -> None:
    overrides = ["generator.weight_transfer=nccl", "generator.num_gpus=1", "learner.workers.num_gpus=1"]
    config = load_run_config(CONFIG, [*overrides, "supervision.publish_deadline_s=45"])
    assert isinstance(config, PolicyRunConfig)
    roles = Roles()
    each = cast(Any, roles)
    composition.Roles(rollouts=each, scoring=each, learner=each).wait_until_ready(config, note=print)
    [plan] = roles.plans
    assert plan.link(1, ()).deadline_s == 45


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "finish"),  # none runs while a synchronous driver publishes
        (["asynchronous.max_staleness=1"], "keep"),
        (["asynchronous.max_staleness=1", "asynchronous.running_requests=finish"], "finish"),
    ],
)
def test_generators_know_what_becomes_of_running_requests(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: str
) -> None:
    made: list[tuple[Any, ...]] = []
    actor = SimpleNamespace(remote=lambda *arguments: made.append(arguments))
    monkeypatch.setitem(composition.GENERATOR_ACTORS, "shm", SimpleNamespace(options=lambda **_: actor))
    config = load_run_config(CONFIG, ["learner.algorithm=decoupled_ppo", *overrides])
    assert isinstance(config, PolicyRunConfig)
    composition._start_generators("tiny", config, cast(Seats, AnySeat()), note=print)
    assert made == [("tiny", config.generator, expected)]


def test_a_node_with_too_little_shared_memory_is_told_before_a_role_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, Path]] = []

    def check(needed_bytes: int, folder: Path) -> None:
        asked.append((needed_bytes, folder))
        raise ConfigError("node-2: /dev/shm has 1.0 MiB free")

    monkeypatch.setattr(composition, "check_shared_memory_of_nodes", check)
    model = SimpleNamespace(total=100)
    monkeypatch.setattr(composition, "local_model_shape", lambda folder: model)
    config = load_run_config(CONFIG, ["generator.dtype=float32"])
    assert isinstance(config, PolicyRunConfig)
    session = cast(Session, SimpleNamespace(ray=SimpleNamespace(is_local=False)))
    with pytest.raises(ConfigError, match="node-2"):
        composition.start_roles(ExitStack(), session, config, "tiny", ())
    assert asked == [(2 * 100 * 4, Path("/dev/shm"))]


def test_generators_of_an_adapter_are_told_its_rank_and_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    actor = SimpleNamespace(remote=lambda *arguments: made.append(arguments))
    monkeypatch.setattr(composition, "AdapterGeneratorActor", SimpleNamespace(options=lambda **_: actor))
    config = load_run_config(CONFIG, ["learner.lora={rank: 32}"])
    assert isinstance(config, PolicyRunConfig)
    composition._start_generators("tiny", config, cast(Seats, AnySeat()), note=print)
    assert made == [("tiny", config.generator, "finish", AdapterSlots(max_rank=32, num_adapters=2))]


def test_a_probe_is_the_beginning_of_the_longest_contract_text() -> None:
    texts = [ContractText(text="a", token_ids=(1, 2)), ContractText(text="b", token_ids=tuple(range(40)))]
    assert composition._probe(texts) == tuple(range(32))
    with pytest.raises(ConfigError, match=r"learner\.lora: no held-out prompt has two tokens"):
        composition._probe([])


def test_a_checkpoint_of_adapters_belongs_to_the_models_that_they_adapt(tmp_path: Path) -> None:
    policy, critic = tmp_path / "policy", tmp_path / "critic"
    for folder in (policy, critic):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
    overrides = ["learner.critic.kind=own_model", f"learner.critic.model={critic}"]
    whole, adapted = (load_run_config(CONFIG, [*overrides, *more]) for more in ([], ["learner.lora={}"]))
    assert isinstance(whole, PolicyRunConfig)
    assert isinstance(adapted, PolicyRunConfig)
    assert composition._facts(whole, str(policy)) == {"model": model_digest(str(policy)), "seed": "0"}
    before = composition._facts(adapted, str(policy))
    (critic / "config.json").write_text("another")
    after = composition._facts(adapted, str(policy))
    assert {name for name in before if before[name] != after[name]} == {"critic_model"}


def test_on_shared_devices_weights_are_published_by_turns_and_others_ask_in_turn() -> None:
    each, turns = cast(Any, Roles()), cast(Any, SimpleNamespace())
    apart = composition.Roles(rollouts=each, scoring=each, learner=each)
    assert (apart.generators, apart.learner_between_steps) == (each, each)
    shared = composition.Roles(rollouts=each, scoring=each, learner=each, turns=turns)
    assert shared.generators is turns
    assert isinstance(shared.learner_between_steps, LearnerInTurn)
