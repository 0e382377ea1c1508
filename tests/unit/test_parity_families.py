"""The whole parity gate on every architecture with the tokenizer and template of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import tiny_tokenizers

from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.parity import Parity, check_parity
from forge_mcp.exporting.reference import TEXTS, HeldOut, Reference, measure_run
from forge_mcp.exporting.tokenizer import read_vocabulary
from forge_mcp.machine import mlx
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.settings import load_settings

FAMILIES = {
    "llama": "llama2",
    "llama3": "llama3",
    "mistral": "mistral",
    "ministral3": "tekken",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "phi3": "phi3",
    "phi4": "gpt-4o",
    "smollm3": "llama3",
    "olmo2": "gpt-2",
    "granite": "gpt-2",
}
ANSWERS = 3


def chats(tokenizer: Any) -> list[list[Message]]:
    """Questions and answers; with a system prompt where the family's template takes one."""
    system = [Message(role="system", content="Answer from the code.")]
    found = [
        [
            Message(
                role="user", content=f"What does f_{n} do?\n\ndef f_{n}(x):\n    return x + {n}"
            ),
            Message(role="assistant", content=f'It adds {n} to x; it\'s "f_{n}".'),
        ]
        for n in range(4)
    ]
    try:
        tokenizer.apply_chat_template([one.model_dump() for one in [*system, *found[0]]])
    except Exception:  # the template refuses the role (jinja2's TemplateError)
        return found
    return [[*system, *chat] for chat in found]


def test_every_architecture_of_the_writer_has_its_family() -> None:
    from forge_mcp.exporting.architectures import ARCHITECTURES

    kinds = {tiny_gguf.models.make_config(kind)["model_type"] for kind in FAMILIES}
    assert kinds == set(ARCHITECTURES) - {"gemma3"}  # gemma3_text inside a model that sees


def model_folder(kind: str, folder: Path) -> Path:
    tiny_tokenizers.write_tokenizer(folder, FAMILIES[kind])
    if FAMILIES[kind] == "gemma":  # mlx-lm's detokeniser counts the tab's second name as a row
        text = json.loads((folder / "tokenizer.json").read_text())
        del text["model"]["vocab"]["\t"]
        (folder / "tokenizer.json").write_text(json.dumps(text))
    vocabulary = tiny_tokenizers.vocabulary_size(folder)
    tiny_gguf.models.write_model(folder, kind, "F16", vocab_size=vocabulary)
    return folder


def reference_of(folder: Path) -> Reference:
    mlx()
    from mlx_lm.utils import load

    model, tokenizer = load(str(folder))[:2]
    config = json.loads((folder / "config.json").read_text())
    return measure_run(
        model,
        tokenizer,
        HeldOut("test", chats(tokenizer)),
        folder / "logits.f32",
        positions=300,
        context=256,
        comparable=read_vocabulary(folder, config["vocab_size"]).comparable,
        answer=lambda places: [],
    )


def gate(reference: Reference, folder: Path) -> Parity:
    gguf = convert_to_gguf(folder, folder / "m.gguf", "f16")
    runtime = LlamaCppChat(gguf, num_ctx=256, threads=1)
    try:
        return check_parity(
            reference,
            gguf,
            runtime,
            load_settings().exporting,
            lambda places: [],
            quantization="f16",
            context=256,
            threads=1,
        )
    finally:
        runtime.close()


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_family_passes_the_gate(kind: str, tmp_path: Path) -> None:
    folder = model_folder(kind, tmp_path / "m")
    reference = reference_of(folder)
    parity = gate(reference, folder)
    assert parity.passed, parity.reasons
    assert parity.argmax_agreement >= 0.99
    asked = len(reference.held_out.chats)
    assert parity.texts_tokenized + parity.texts_left_out == asked + len(TEXTS)
    assert parity.texts_left_out <= len(TEXTS) // 2
    assert parity.chats_rendered_equal == asked


@pytest.mark.parametrize("kind", ["llama", "llama3", "gemma"])
def test_two_beginnings_and_a_lost_one_are_refused(kind: str, tmp_path: Path) -> None:
    """llama.cpp takes a BOS off what a template renders where its tokenizer adds one."""
    folder = model_folder(kind, tmp_path / "m")
    reference = reference_of(folder)
    path = folder / "chat_template.jinja"
    template = path.read_text()
    path.write_text("{{ bos_token }}" + template)
    assert gate(reference, folder).reasons == ["4 of 4 chats are rendered otherwise"]
    path.write_text(template)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    lost = gate(reference, folder)  # the tokenizer in the file adds none
    assert not lost.passed
