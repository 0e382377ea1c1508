"""Sentence encoders: a text → a vector of length 1, so that products of vectors are cosines.

    load_encoder("./MiniLM")                                  a folder in Hugging Face format
    load_encoder("sentence-transformers/all-MiniLM-L6-v2")    a name in the local cache
    load_encoder("ollama:nomic-embed-text")                   a model in Ollama

Nothing is ever downloaded here. A folder is read as sentence-transformers reads it (modules.json:
pooling, longest input, prompts); one without modules.json is pooled by the mean over its tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import ValidationError

from forge_mcp import machine
from forge_mcp.errors import InvalidSettings, NotFound, UnsupportedModel
from forge_mcp.retrieval.bert import Bert, BertConfig
from forge_mcp.workspace import hash_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

Kind = Literal["document", "query"]
# Told after each batch: texts done, texts in all. What it raises stops the work.
Progress = Callable[[int, int], None]

OLLAMA = "ollama:"
WEIGHTS = "model.safetensors"
TOKENS_PER_BATCH = 4096  # padding included; some 100 MB at work for MiniLM
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len")
_MODULES = ("Transformer", "Pooling", "Normalize")
_FILES = (  # what decides the vectors, beside the weights
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_GET_MINILM = "hf download sentence-transformers/all-MiniLM-L6-v2"


class Encoder(Protocol):
    """What makes vectors of texts. Equal fingerprints make equal vectors (but for rounding)."""

    @property
    def name(self) -> str:
        """As the setting retrieval.encoder gives it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides the vectors."""

    def encode(
        self, texts: Sequence[str], kind: Kind = "document", progress: Progress | None = None
    ) -> Vectors:
        """The vectors of some texts: float32 of shape (texts, dimensions), each of length 1."""


def load_encoder(name: str, *, ollama_host: str, relative_to: Path | None = None) -> Encoder:
    """Load an encoder.

    Args:
        name: a folder, a name in the local Hugging Face cache, or "ollama:MODEL".
        ollama_host: of the Ollama server, for "ollama:MODEL".
        relative_to: where a relative folder starts; the current folder by default.

    Raises:
        InvalidSettings: no encoder is named.
        NotFound: nothing of that name on this machine.
        UnsupportedModel: a file is missing or damaged, or it is of a kind that is not known here.
        Unavailable: Ollama is not there.
    """
    if not name:
        raise InvalidSettings(
            "No encoder is set, and retrieval.method needs one.",
            cause="retrieval.encoder is empty",
            next_step="Set it to a folder, to a name in the local cache (fetch one with "
            f"'{_GET_MINILM}') or to ollama:MODEL, or set retrieval.method to bm25.",
        )
    if name.startswith(OLLAMA):
        from forge_mcp.retrieval.ollama import OllamaEncoder

        return OllamaEncoder(name.removeprefix(OLLAMA), ollama_host)
    return FolderEncoder(name, _folder(name, relative_to))


def _folder(name: str, relative_to: Path | None) -> Path:
    folder = (relative_to or Path()) / Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return _cached(name)
    raise NotFound(
        f"There is no encoder '{name}'.",
        cause="it is neither a folder nor a name as the Hugging Face hub has them",
        next_step=f"Give the folder of one, or fetch one with '{_GET_MINILM}' and give its name.",
    )


def _cached(name: str) -> Path:
    """The snapshot of a Hugging Face repository in the local cache."""
    machine.keep_hub_offline()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json"]))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise NotFound(
            f"The encoder '{name}' is not on this machine.",
            cause="it is no folder and not in the local Hugging Face cache, and nothing is "
            "downloaded here",
            next_step=f"Fetch it once with 'hf download {name}', or give a folder.",
        ) from error


@dataclass(frozen=True)
class _Manner:
    """How sentence-transformers would use a folder."""

    pooling: str = "mean"
    max_tokens: int | None = None
    document_prompt: str = ""
    query_prompt: str = ""


class FolderEncoder:
    """A BERT or RoBERTa from a folder, on MLX. See `load_encoder` for what it raises."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        try:
            config = BertConfig.model_validate_json(_required(folder, "config.json"))
            problem = config.problem()
            if problem:
                raise UnsupportedModel(
                    f"The encoder '{name}' cannot be run here.",
                    cause=problem,
                    next_step="Take one of the BERT or RoBERTa family, e.g. all-MiniLM-L6-v2, or "
                    "let Ollama run it (ollama:MODEL).",
                )
            _required(folder, WEIGHTS)
            self._manner = _manner(folder)
            self._tokenizer = _tokenizer(folder)
            longest = min(config.max_tokens, self._manner.max_tokens or config.max_tokens)
            self._tokenizer.enable_truncation(longest)
            self._tokenizer.no_padding()
            self.fingerprint = _fingerprint(folder)
            self._model = Bert(config, folder / WEIGHTS)
            if self._tokenizer.get_vocab_size() > config.vocab_size:
                raise ValueError(
                    f"its tokenizer has {self._tokenizer.get_vocab_size()} tokens, its model "
                    f"{config.vocab_size}"
                )
        except UnsupportedModel:
            raise
        except ValidationError as error:
            first = error.errors()[0]
            cause = f"config.json: {'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
            raise _damaged(name, folder, cause) from error
        except Exception as error:  # safetensors, JSON and tokenizer errors have no common type
            text = str(error).strip("'\"").splitlines() or [type(error).__name__]
            raise _damaged(name, folder, text[0]) from error

    def encode(
        self, texts: Sequence[str], kind: Kind = "document", progress: Progress | None = None
    ) -> Vectors:
        """The vectors of some texts: float32 of shape (texts, dimensions), each of length 1.

        Texts of a length are encoded together, and cut off at the encoder's longest input.
        """
        import numpy as np

        manner = self._manner
        prompt = manner.query_prompt if kind == "query" else manner.document_prompt
        encoded = [
            one.ids for one in self._tokenizer.encode_batch([f"{prompt}{text}" for text in texts])
        ]
        vectors = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        done = 0
        for batch in _batches([len(ids) for ids in encoded]):
            vectors[batch] = self._embed([encoded[row] for row in batch])
            done += len(batch)
            if progress is not None:
                progress(done, len(texts))
        return vectors

    def _embed(self, rows: list[list[int]]) -> Any:
        import numpy as np

        mx = machine.mlx()
        config = self._model.config
        longest = max(len(ids) for ids in rows)
        ids = np.full((len(rows), longest), config.pad_token_id, np.int32)
        mask = np.zeros((len(rows), longest), np.bool_)
        for row, given in enumerate(rows):
            ids[row, : len(given)] = given
            mask[row, : len(given)] = True
        seen = mx.array(mask)
        pooled = _pool(mx, self._model.hidden_states(mx.array(ids), seen), seen, self._manner)
        return normalised(np.asarray(pooled))


def normalised(vectors: Any) -> Any:
    """Vectors (rows) at length 1; those of length 0 stay so."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of about equal length, shortest first, at most TOKENS_PER_BATCH in a batch."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        # The rows come by length, so this one is the batch's longest.
        if not batches or (len(batches[-1]) + 1) * lengths[row] > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(row)
    return batches


def _pool(mx: Any, hidden: Any, mask: Any, manner: _Manner) -> Any:
    """One vector a text, as sentence-transformers' Pooling makes it."""
    if manner.pooling == "cls":
        return hidden[:, 0]
    seen = mask[:, :, None]
    if manner.pooling == "max":
        return mx.where(seen, hidden, float("-inf")).max(axis=1)
    total = mx.where(seen, hidden, 0.0).sum(axis=1)
    count = mask.sum(axis=1, keepdims=True)
    return total / (count if manner.pooling == "mean" else mx.sqrt(count))


def _manner(folder: Path) -> _Manner:
    """What modules.json and the files it names say.

    Raises:
        UnsupportedModel: a module or a pooling that is not known here.
    """
    if not (folder / "modules.json").is_file():
        return _Manner()
    pooling = "mean"
    for module in json.loads(_required(folder, "modules.json")):
        kind = module["type"].rpartition(".")[2]
        if kind not in _MODULES:
            raise _unknown(folder, f"its modules.json names {kind}; known are {_MODULES}")
        if kind == "Pooling":
            pooling = _pooling(folder, module["path"])
    sizes = _optional(folder, "sentence_bert_config.json")
    whole = _optional(folder, "config_sentence_transformers.json")
    prompts = whole.get("prompts") or {}
    usual = prompts.get(whole.get("default_prompt_name"), "")
    document = prompts.get("document", prompts.get("passage", usual))
    return _Manner(pooling, sizes.get("max_seq_length"), document, prompts.get("query", usual))


def _pooling(folder: Path, path: str) -> str:
    config = json.loads(_required(folder, f"{path}/config.json"))
    named = config.get("pooling_mode")  # newer files name it, older ones have a flag for each
    flags = [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on is True
    ]
    modes = [named] if isinstance(named, str) else flags
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise _unknown(folder, f"its pooling is {modes}; known is one of {', '.join(POOLINGS)}")
    return str(modes[0])


def _unknown(folder: Path, cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The encoder in {folder} cannot be run here.",
        cause=cause,
        next_step="Take one that pools and normalises the states of a BERT or RoBERTa, e.g. "
        "all-MiniLM-L6-v2.",
    )


def _damaged(name: str, folder: Path, cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The encoder '{name}' cannot be loaded.",
        cause=cause,
        next_step=f"Check the files in {folder}, or fetch the model again.",
    )


def _required(folder: Path, name: str) -> bytes:
    """The content of a file; of the weights only that they are there.

    Raises:
        UnsupportedModel: it is missing.
    """
    path = folder / name
    if not path.is_file():
        raise UnsupportedModel(
            f"The encoder in {folder} is not complete.",
            cause=f"{name} is missing",
            next_step="Give a folder in Hugging Face format with safetensors weights; weights in "
            "PyTorch's own format have to be converted first.",
        )
    return b"" if name == WEIGHTS else path.read_bytes()


def _optional(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    read: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return read


def _tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer; one is made of older files (CodeBERT's) by transformers."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    machine.keep_hub_offline()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    names = [*_FILES, WEIGHTS, *(f"{p.parent.name}/{p.name}" for p in folder.glob("*/config.json"))]
    for name in sorted(names):
        if (folder / name).is_file():
            digest.update(f"{name} {hash_file(folder / name)}\n".encode())
    return digest.hexdigest()
