"""Low-rank adapters of peft as models of their own: merged once into the model that they belong to, and kept in the cache."""

import json
import logging
from pathlib import Path

from actors.sources.models import model_digest, resolve_model
from actors.sources.tiny_model import without_progress_bars
from cluster.errors import DataError
from cluster.host.cache import cache_root
from cluster.storage.policy_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, copy_tokenizer, new_folder
from cluster.storage.serving_contract import ServingContract, check_files, file_digests, read_contract, write_contract

logger = logging.getLogger("rayward")


def is_adapter(folder: Path) -> bool:
    """Whether the folder is one of peft's, rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def merged_model(adapter: Path) -> Path:
    """A whole model that does what the adapter's does, with the tokenizer and the serving contract that lie beside the adapter.

    vLLM would take both apart, but no newer adapter under an old name, and Ray's server looks for them in cloud storage only.
    Raises `DataError` where the adapter, or the model that it names, cannot be used.
    """
    base = _base_of(adapter)
    contract = read_contract(adapter)
    if contract is not None:
        check_files(adapter, contract)
    folder = cache_root() / "merged" / f"{model_digest(str(adapter))[:16]}-{model_digest(str(base))[:16]}"
    if not folder.is_dir():
        logger.info("the adapter in %s is merged into %s, once", adapter, base)
        with new_folder(folder) as draft:
            _merge(adapter, base, draft, contract)
    return folder


def _base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to."""
    path = adapter / ADAPTER_CONFIG
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not name the adapter's model: {error!r}; export the policy again") from error
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise DataError(f"{adapter} has no {ADAPTER_WEIGHTS}; export the policy again")
    base = Path(str(named)).expanduser()
    if not base.is_dir():
        raise DataError(
            f"{path} names the model {str(named)!r}, which is no folder of this machine; put the model there, or the path "
            "of its folder into base_model_name_or_path"
        )
    return Path(resolve_model(str(base)))


def _merge(adapter: Path, base: Path, draft: Path, contract: ServingContract | None) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    dtypes: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    try:
        dtype = AutoConfig.from_pretrained(base).dtype if contract is None else dtypes[contract.weights_dtype]
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
            merged.to(dtype or torch.float32).save_pretrained(draft)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{adapter} cannot be merged into {base}: {error}") from error
    copy_tokenizer(base, draft)
    copy_tokenizer(adapter, draft)
    if contract is not None:
        write_contract(draft, contract.model_copy(update={"files": file_digests(draft)}))
