"""What leaves a policy-gradient learner as files: weights for generators, and policies as folders.

Rank 0 writes. Where the policy is sharded, the other ranks give it their parts meanwhile, in calls of their own.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from actors.config import DType
from cluster.storage.policy_folders import new_folder
from cluster.storage.serving_contract import ContractPrompt, ContractText, ServingContract, file_digests, write_contract
from cluster.types import WeightFile
from learners.network.models import TORCH_DTYPES, PolicyWithCritic, write_policy
from learners.network.sharding import Shard, gathering
from learners.network.trunk import ForwardSettings
from learners.policy.serving_contract import contract_prompts
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from learners.weights.file import generator_weights, publish_weights


class PolicyFiles:
    """One rank's side of it."""

    def __init__(
        self,
        network: PolicyWithCritic,
        start: StartingPoint,
        config: PolicyLearnerConfig,
        settings: ForwardSettings,
        shard: Shard,
    ) -> None:
        self._network = network
        self._start = start
        self._config = config
        self._settings = settings
        self._is_sharded = shard.count > 1

    def publish(self, directory: Path, dtype: DType, *, policy_version: int) -> WeightFile:
        """Write the policy for generators; call it on rank 0, and `hand_over` on the others."""
        tensors = generator_weights(self._network.policy, TORCH_DTYPES[dtype])
        return publish_weights(tensors, directory, policy_version=policy_version)

    def hand_over(self, dtype: DType) -> None:
        """Give rank 0 this rank's part of the policy, where it has one of its own."""
        if self._is_sharded:
            with gathering(generator_weights(self._network.policy, TORCH_DTYPES[dtype])):
                pass

    def export(self, directory: Path, dtype: DType, texts: Sequence[ContractText], *, policy_version: int) -> str:
        """Write the policy as a Hugging Face folder, with its serving contract about `texts`; call it on rank 0, and
        `hand_over_export` on the others.

        Returns why it could not be written, for example on a full disk; empty where it was. Raises `DataError` where `directory`
        exists, and for a policy that is not finite.
        """
        policy = self._network.policy
        prompts = self._contract_prompts(texts)
        try:
            # In this order: the other ranks are met to the end, whatever happens to the folder.
            with gathering(generator_weights(policy, TORCH_DTYPES[dtype])) as tensors, new_folder(directory) as draft:
                write_policy(policy, Path(self._start.model_path), draft, tensors)
                contract = ServingContract(
                    policy_version=policy_version,
                    weights_dtype=dtype,
                    compute_dtype=self._config.workers.compute_dtype,
                    max_logprob_mismatch=self._config.mismatch.max_logprob_mismatch,
                    files=file_digests(draft),
                    prompts=prompts,
                )
                write_contract(draft, contract)
        except OSError as error:
            return str(error)
        return ""

    def hand_over_export(self, dtype: DType, texts: Sequence[ContractText]) -> None:
        """What rank 0 needs of this rank for `export`."""
        if self._is_sharded:
            self._contract_prompts(texts)
            self.hand_over(dtype)

    def _contract_prompts(self, texts: Sequence[ContractText]) -> tuple[ContractPrompt, ...]:
        return self._network.ask_policy(partial(contract_prompts, texts=texts, settings=self._settings))
