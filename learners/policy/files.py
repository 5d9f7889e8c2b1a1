"""What leaves a policy-gradient learner as files: weights for generators, and policies as folders.

Rank 0 writes. Where the policy is sharded, the other ranks give it their parts meanwhile, in calls of their own.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from actors.config import DType
from cluster.storage.policy_folders import copy_tokenizer, new_folder
from cluster.storage.serving_contract import ContractPrompt, ContractText, ServingContract, file_digests, write_contract
from cluster.types import AdapterFile, AdapterProbe, WeightFile
from learners.network.lora import file_tensors, write_adapter
from learners.network.models import TORCH_DTYPES, PolicyWithCritic, write_policy
from learners.network.sharding import Shard, gathering
from learners.network.trunk import ForwardSettings
from learners.policy.probe import adapter_probe
from learners.policy.serving_contract import contract_prompts
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import ExportedWeights
from learners.weights.adapter import publish_adapter
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

    def publish(self, directory: Path, dtype: DType, probe: Sequence[int], *, policy_version: int) -> WeightFile | AdapterFile:
        """Write the policy for generators; call it on rank 0, and `hand_over` on the others.

        `probe`: token ids by which generators of an adapter see that they sample with it.
        """
        policy = self._network.policy
        if self._config.lora is None:
            tensors = generator_weights(policy, TORCH_DTYPES[dtype])
            return publish_weights(tensors, directory, policy_version=policy_version)
        return publish_adapter(policy, self._start.model_path, directory, policy_version=policy_version, probe=self._probe(probe))

    def hand_over(self, dtype: DType, probe: Sequence[int]) -> None:
        """Give rank 0 this rank's part of what it publishes, where it has one of its own."""
        if self._is_sharded:
            if self._config.lora is not None:
                self._probe(probe)
            self._hand_over(dtype, "merged" if self._config.lora is None else "adapter")

    def export(
        self, directory: Path, dtype: DType, texts: Sequence[ContractText], weights: ExportedWeights, *, policy_version: int
    ) -> str:
        """Write the policy as a Hugging Face folder, or its adapter as one of peft's, with its serving contract about `texts`;
        call it on rank 0, and `hand_over_export` on the others.

        Returns why it could not be written, for example on a full disk; empty where it was. Raises `DataError` where `directory`
        exists, and for a policy that is not finite.
        """
        policy, start_folder = self._network.policy, Path(self._start.model_path)
        prompts = self._contract_prompts(texts)
        try:
            # In this order: the other ranks are met to the end, whatever happens to the folder.
            with gathering(self._exported(dtype, weights)) as tensors, new_folder(directory) as draft:
                if weights == "merged":
                    write_policy(policy, start_folder, draft, tensors)
                else:
                    write_adapter(policy, str(start_folder.absolute()), draft, tensors)
                    copy_tokenizer(start_folder, draft)
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

    def hand_over_export(self, dtype: DType, texts: Sequence[ContractText], weights: ExportedWeights) -> None:
        """What rank 0 needs of this rank for `export`."""
        if self._is_sharded:
            self._contract_prompts(texts)
            self._hand_over(dtype, weights)

    def _hand_over(self, dtype: DType, weights: ExportedWeights) -> None:
        with gathering(self._exported(dtype, weights)):
            pass

    def _exported(self, dtype: DType, weights: ExportedWeights) -> dict[str, Tensor]:
        policy = self._network.policy
        return file_tensors(policy) if weights == "adapter" else generator_weights(policy, TORCH_DTYPES[dtype])

    def _probe(self, token_ids: Sequence[int]) -> AdapterProbe:
        limit = self._config.mismatch.max_logprob_mismatch
        return adapter_probe(self._network, token_ids, self._settings, max_mismatch=limit)

    def _contract_prompts(self, texts: Sequence[ContractText]) -> tuple[ContractPrompt, ...]:
        return self._network.ask_policy(partial(contract_prompts, texts=texts, settings=self._settings))
