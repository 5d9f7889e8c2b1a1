"""A replica takes newer versions of a run as they appear, one replica after the other, and comes back from those that are bad."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from vllm.v1.engine.exceptions import EngineDeadError

from actors.sources.tensor_shapes import weight_files
from cluster.storage.serving_contract import ServingContract
from serving.policy_folder import ServedModel
from serving.versions.followed_versions import FollowedVersion, FollowedVersions
from serving.versions.policy_check import BadPolicyError, check_policy
from serving.versions.version_gate import VersionGate

logger = logging.getLogger("ray.serve")  # goes to the replica's file among Serve's logs

FOLLOW_INTERVAL_S: Final = 1.0
MAX_TRIES: Final = 2  # replicas that may be lost, or run out of time, as they take one version


class FollowingEngine(Protocol):
    """What a follower needs of its replica."""

    async def load(self, files: Sequence[Path]) -> None:
        """Replace the weights by those in the files. Raises what the engine raises."""

    async def check(self, contract: ServingContract | None) -> None:
        """Raises `BadPolicyError` where the engine does not do what the contract says."""

    async def tell_routers(self, *, is_changing: bool) -> None:
        """Return when no more requests come (True), or some may again (False)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeDeadlines:
    """Wall time of one change, in seconds. Produced by `deployment`, consumed by `Follower`."""

    drain_s: float  # for the requests inside to end; after that the change waits for another turn
    load_s: float  # for new weights to be loaded and checked; after that the replica is replaced


class Follower:
    """Keeps one replica on the newest good version. For one event loop."""

    def __init__(
        self,
        versions: FollowedVersions,
        held: FollowedVersion,
        model: ServedModel,
        *,
        gate: VersionGate,
        engine: FollowingEngine,
        deadlines: ChangeDeadlines,
    ) -> None:
        """`held`: the version in the engine, checked. `model`: what the engine was built for."""
        self._versions = versions
        self._held = held
        self._model = model
        self._gate = gate
        self._engine = engine
        self._deadlines = deadlines
        self._last_trouble = ""

    async def follow(self) -> None:
        """Take newer versions for ever. Raises where nobody knows what the engine holds; the replica must be replaced then."""
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            await self.take_newest()

    async def take_newest(self) -> None:
        """Hold the newest good version, or, while it is another replica's turn, what is held now."""
        try:
            if await self._newest() is None:
                return
            with self._versions.turn() as is_ours:
                newest = await self._newest() if is_ours else None  # the one before may have set it aside
                if newest is not None:
                    await self._take(newest)
        except OSError as error:
            if not self._gate.is_open:
                raise
            self._tell(str(error))  # the disk or the run directory is away; what is served stays

    async def _newest(self) -> FollowedVersion | None:
        return await asyncio.to_thread(self._versions.newest, self._held)

    async def _take(self, newest: FollowedVersion) -> None:
        folder = newest.policy.path
        try:
            contract = await asyncio.to_thread(check_policy, folder, self._model)
        except BadPolicyError as error:
            if folder.is_dir():  # and was not removed meanwhile, as old versions are
                self._versions.note_set_aside(newest, error.reason, str(error))
            return
        await self._engine.tell_routers(is_changing=True)
        try:
            async with self._gate.change(drain_s=self._deadlines.drain_s):
                async with asyncio.timeout(self._deadlines.load_s):
                    await self._load(newest, contract)
                self._gate.version = self._held.policy.policy_version
        except TimeoutError:
            if not self._gate.is_open:  # in the midst of the change
                raise
            self._tell(f"requests did not end within {self._deadlines.drain_s:g} s; {folder} waits for another turn")
        finally:
            if self._gate.is_open:
                await self._engine.tell_routers(is_changing=False)

    async def _load(self, newest: FollowedVersion, contract: ServingContract | None) -> None:
        """Into the engine; or back to what it held, where something is wrong with it."""
        folder = newest.policy.path
        if self._versions.note_begun(newest) > MAX_TRIES:
            self._versions.note_set_aside(newest, "engine", f"{folder}: {MAX_TRIES} replicas were lost as they took it")
            return
        try:
            await self._put(newest)
            await self._engine.check(contract)
        except EngineDeadError:
            raise
        except BadPolicyError as error:
            self._versions.note_set_aside(newest, error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - vLLM passes on whatever its worker raised as a bare Exception
            self._versions.note_set_aside(newest, "engine", f"{folder}: the engine refused it: {error}")
        else:
            self._held = newest
            self._versions.note_served(newest)
            logger.info("policy version %s is served", newest.policy.policy_version)
            return
        await self._put(self._held)

    async def _put(self, version: FollowedVersion) -> None:
        await self._engine.load(await asyncio.to_thread(weight_files, version.policy.path))

    def _tell(self, trouble: str) -> None:
        """Once, however often it is met."""
        if trouble != self._last_trouble:
            logger.error("%s", trouble)
            self._last_trouble = trouble
