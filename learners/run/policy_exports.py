"""Policies as folders that can be served: the last one, and where the run is followed, some on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cluster.errors import RaywardError
from cluster.storage.policy_folders import remove_old_versions, version_folder, version_folders
from cluster.storage.serving_contract import ContractText
from learners.run.prompt_loading import RunPrompts
from learners.run.session import Session
from learners.settings.run import PolicyRunConfig


class Exporter(Protocol):
    """The learner, as far as it writes policies."""

    def export(self, directory: Path, texts: Sequence[ContractText]) -> str: ...


class PolicyExports:
    """Writes `policies/v*` of one run and removes old ones. The summary lists what there is."""

    def __init__(self, session: Session, config: PolicyRunConfig, learner: Exporter, prompts: RunPrompts) -> None:
        self._session = session
        self._config = config.export
        self._num_steps = config.learner.num_steps
        self._learner = learner
        self._texts = prompts.contract
        self._policies = session.path / "policies"

    def after_step(self, num_steps_done: int, policy_version: int) -> None:
        """Write that version if one is due. A full disk may pass, so training goes on without it."""
        every = self._config.every_num_steps
        if not every or num_steps_done % every or num_steps_done == self._num_steps:  # the last one has a stage of its own
            return
        if problem := self._write(policy_version):
            self._session.view.note(f"policy version {policy_version} is not exported: {problem}; training goes on")

    def last(self, policy_version: int) -> None:
        """Write what the run ends with. Raises `RaywardError` where that cannot be done; the run can then be resumed."""
        if problem := self._write(policy_version):
            raise RaywardError(problem)
        self._session.directory.write_summary({"policy_version": policy_version})

    def _write(self, policy_version: int) -> str:
        """Why it could not be written; empty where it is there.

        A version that is there stays as it is, also where its step was done again after a loss: somebody may be serving it.
        """
        folder = version_folder(self._policies, policy_version)
        if not folder.exists() and (problem := self._learner.export(folder, self._texts)):
            return problem
        remove_old_versions(self._policies, keep=self._config.keep)
        self._session.directory.write_summary({"exported_versions": [version for version, _ in version_folders(self._policies)]})
        return ""
