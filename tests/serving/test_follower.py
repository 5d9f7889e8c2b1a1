"""A replica that follows a run: what it takes, what it sets aside, and what it goes back to. No engine."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from cluster.errors import DataError
from cluster.storage.serving_contract import CONTRACT_NAME, ServingContract
from serving.policy_folder import served_model
from serving.versions import followed_versions
from serving.versions.followed_versions import FollowedVersions, first_version
from serving.versions.follower import MAX_TRIES, ChangeDeadlines, Follower
from serving.versions.policy_check import BadPolicyError
from serving.versions.version_gate import VersionGate
from tests.serving.small_policies import seal, write_small_policy


class Engine:
    """Holds the folder of the last load. `refuses`, `breaks`: by folder name, what its load or its check raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuses: dict[str, BaseException] = {}
        self.breaks: dict[str, BaseException] = {}
        self._loaded = ""

    async def load(self, files: Sequence[Path]) -> None:
        self._loaded = files[0].parent.name
        self.calls.append(f"load {self._loaded}")
        if error := self.refuses.get(self._loaded):
            raise error

    async def check(self, contract: ServingContract | None) -> None:
        assert contract is not None
        self.calls.append(f"check {self._loaded}")
        if error := self.breaks.get(self._loaded):
            raise error

    async def tell_routers(self, *, is_changing: bool) -> None:
        self.calls.append("away" if is_changing else "back")


class Replica:
    """A follower on version 1 of a run in `folder`."""

    def __init__(self, folder: Path, *, drain_s: float = 10.0, load_s: float = 10.0) -> None:
        self.run_dir = folder / "run"
        self.policies = self.run_dir / "policies"
        if not self.policies.exists():
            seal(write_small_policy(self.policies / "v000001"))
        self.versions = FollowedVersions(self.run_dir, folder / "state")
        held = first_version(self.versions)
        self.versions.note_served(held)
        self.engine = Engine()
        self.gate = VersionGate(held.policy.policy_version)
        self.follower = Follower(
            self.versions,
            held,
            served_model(held.policy.path),
            gate=self.gate,
            engine=self.engine,
            deadlines=ChangeDeadlines(drain_s=drain_s, load_s=load_s),
        )

    def look(self) -> int | None:
        """One look at the run; the version that requests meet then."""
        asyncio.run(self.follower.take_newest())
        return self.gate.version

    def starts_on(self) -> str:
        """What a replica starts on that comes in its place."""
        return first_version(FollowedVersions(self.run_dir, self.versions._file.parent)).policy.path.name


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path)


def test_a_newer_version_is_loaded_and_checked_before_it_is_served(replica: Replica) -> None:
    seal(write_small_policy(replica.policies / "v000002"))
    assert replica.look() == 2
    assert replica.engine.calls == ["away", "load v000002", "check v000002", "back"]
    assert replica.look() == 2
    assert len(replica.engine.calls) == 4
    assert replica.starts_on() == "v000002"


def cut_off(folder: Path) -> None:
    seal(write_small_policy(folder))
    path = folder / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def without(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        seal(write_small_policy(folder))
        (folder / name).unlink()

    return write


def changed_after_its_contract(folder: Path) -> None:
    seal(write_small_policy(folder))
    (folder / "config.json").write_text('{"rope_theta": 1}')


def sealed(**parts: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        seal(write_small_policy(folder, **parts))  # type: ignore[arg-type]

    return write


BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without("config.json"), "files"),
    "no weights that the index names": (without("b.safetensors"), "files"),
    "weights cut off": (cut_off, "files"),
    "a file changed": (changed_after_its_contract, "files"),
    "tensors of another shape": (sealed(size=3), "model"),
    "another tokenizer": (sealed(tokenizer='{"other": 1}'), "model"),
    "numbers that are not finite": (sealed(value=float("nan")), "not_finite"),
    "no contract": (without(CONTRACT_NAME), "contract"),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_a_bad_folder_is_set_aside_and_what_is_served_stays(replica: Replica, what: str) -> None:
    """The engine hears nothing of it, it is told once, a new replica does not start on it, and the next good one is taken."""
    write, reason = BAD_FOLDERS[what]
    write(replica.policies / "v000002")
    assert replica.look() == 1
    assert replica.look() == 1
    assert replica.engine.calls == []
    assert replica.versions.set_aside() == {"v000002": reason}
    assert replica.starts_on() == "v000001"
    seal(write_small_policy(replica.policies / "v000003"))
    assert replica.look() == 3


@pytest.mark.parametrize("where", ["refuses", "breaks"])
@pytest.mark.parametrize(
    ("error", "reason"), [(BadPolicyError("other tokens", reason="contract"), "contract"), (Exception("refused"), "engine")]
)
def test_what_the_engine_finds_bad_is_set_aside_and_it_goes_back(
    replica: Replica, where: str, error: BaseException, reason: str
) -> None:
    getattr(replica.engine, where)["v000002"] = error
    seal(write_small_policy(replica.policies / "v000002"))
    assert replica.look() == 1
    assert replica.engine.calls[-2:] == ["load v000001", "back"]
    assert replica.gate.is_open
    assert replica.versions.set_aside() == {"v000002": reason}
    assert replica.starts_on() == "v000001"


def test_a_version_that_is_exported_again_gets_another_chance(replica: Replica) -> None:
    folder = replica.policies / "v000002"
    write_small_policy(folder)
    assert replica.look() == 1
    seal(folder)
    assert replica.look() == 2


def test_a_version_that_ends_engines_is_set_aside_by_the_third_replica(tmp_path: Path) -> None:
    for _ in range(MAX_TRIES):
        replica = Replica(tmp_path)
        replica.engine.breaks["v000002"] = EngineDeadError()
        if not (replica.policies / "v000002").exists():
            seal(write_small_policy(replica.policies / "v000002"))
        with pytest.raises(EngineDeadError):
            replica.look()
        assert not replica.gate.is_open
    replica = Replica(tmp_path)
    assert replica.look() == 1
    assert (replica.versions.set_aside(), replica.engine.calls) == ({"v000002": "engine"}, ["away", "back"])


def test_a_change_that_takes_too_long_ends_the_replica(tmp_path: Path) -> None:
    replica = Replica(tmp_path, load_s=0.01)

    async def hang(files: Sequence[Path]) -> None:
        await asyncio.Event().wait()

    replica.engine.load = hang  # type: ignore[method-assign]
    seal(write_small_policy(replica.policies / "v000002"))
    with pytest.raises(TimeoutError):
        replica.look()
    assert not replica.gate.is_open


def test_requests_that_do_not_end_put_the_change_off(tmp_path: Path) -> None:
    replica = Replica(tmp_path, drain_s=0.01)
    seal(write_small_policy(replica.policies / "v000002"))

    async def looks() -> None:
        async with replica.gate.request():
            for _ in range(MAX_TRIES + 1):  # it is no fault of the version
                await replica.follower.take_newest()
        assert replica.gate.version == 1
        assert replica.engine.calls == ["away", "back"] * (MAX_TRIES + 1)
        await replica.follower.take_newest()
        assert replica.gate.version == 2

    asyncio.run(looks())


def test_replicas_change_one_after_the_other(tmp_path: Path) -> None:
    one, other = Replica(tmp_path), Replica(tmp_path)
    seal(write_small_policy(one.policies / "v000002"))
    with one.versions.turn() as is_ours:
        assert is_ours
        assert other.look() == 1
    assert other.engine.calls == []
    assert other.look() == 2
    assert one.look() == 2


def test_what_the_one_before_has_set_aside_meanwhile_is_not_loaded(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(write_small_policy(replica.policies / "v000002"))

    @contextmanager
    def turn() -> Iterator[bool]:
        newest = replica.versions.newest(None)
        assert newest is not None
        replica.versions.note_set_aside(newest, "contract", "said the one before")
        yield True

    monkeypatch.setattr(replica.versions, "turn", turn)
    assert replica.look() == 1
    assert replica.engine.calls == []


def test_lost_replicas_are_not_blamed_on_a_version_that_another_serves(replica: Replica) -> None:
    served = first_version(replica.versions)
    assert [replica.versions.note_begun(served) for _ in range(MAX_TRIES + 1)] == [1] * (MAX_TRIES + 1)
    assert replica.starts_on() == "v000001"


def test_a_removed_version_is_no_trouble(replica: Replica) -> None:
    """Retention may remove what is served, and what a replica was about to read."""
    seal(write_small_policy(replica.policies / "v000002"))
    seal(write_small_policy(replica.policies / "v000003"))
    for path in sorted((replica.policies / "v000001").iterdir()):
        path.unlink()
    (replica.policies / "v000001").rmdir()
    assert replica.look() == 3
    assert replica.versions.set_aside() == {}


def test_a_run_directory_that_is_away_is_waited_for(replica: Replica, tmp_path: Path) -> None:
    replica.policies.rename(tmp_path / "away")
    assert replica.look() == 1
    (tmp_path / "away").rename(replica.policies)
    seal(write_small_policy(replica.policies / "v000002"))
    assert replica.look() == 2


def test_a_full_disk_costs_what_is_written_down_and_not_what_is_known(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(followed_versions, "write_atomically", full)
    write_small_policy(replica.policies / "v000002")
    assert replica.look() == 1
    assert replica.versions.set_aside() == {"v000002": "contract"}
    seal(write_small_policy(replica.policies / "v000003"))
    assert replica.look() == 3


def test_a_file_that_is_not_readable_is_begun_anew(replica: Replica) -> None:
    replica.versions._file.write_text("[1")
    write_small_policy(replica.policies / "v000002")
    assert replica.look() == 1
    assert replica.starts_on() == "v000001"


def test_a_new_endpoint_starts_on_the_newest_version_that_is_whole(tmp_path: Path) -> None:
    policies = tmp_path / "run" / "policies"
    seal(write_small_policy(policies / "v000001"))
    changed_after_its_contract(policies / "v000002")
    versions = FollowedVersions(tmp_path / "run", tmp_path / "state")
    assert first_version(versions).policy.path.name == "v000001"
    assert versions.set_aside() == {"v000002": "files"}


def test_a_run_with_nothing_to_serve_is_told(tmp_path: Path) -> None:
    changed_after_its_contract(tmp_path / "run" / "policies" / "v000002")
    with pytest.raises(DataError, match="no policy that can be served; set aside are {'v000002': 'files'}"):
        first_version(FollowedVersions(tmp_path / "run", tmp_path / "state"))
