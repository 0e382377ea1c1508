"""The parity gate: a faithful file passes, and every fault that users meet is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_house import CHAT, END, PAD, load, write_model

from forge_mcp.errors import BadInput, OutOfSpace
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.parity import Parity, check_parity
from forge_mcp.exporting.reference import (
    TEXTS,
    HeldOut,
    Reference,
    StoredLogits,
    measure_run,
    tail_logits,
)
from forge_mcp.exporting.report import Compared, export_report, quality_table, size
from forge_mcp.exporting.tokenizer import read_vocabulary
from forge_mcp.machine import mlx
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.settings import ExportingSettings, load_settings


@dataclass(frozen=True)
class Answer:
    """What `judging` says of an answer."""

    right: bool
    stopped: bool


def chats(count: int = 3) -> list[list[Message]]:
    return [
        [
            Message(role="system", content="Answer."),
            Message(role="user", content=f"def f_{index}(x): return x + {index}\n" * 6),
            Message(role="assistant", content=f"<ANSWER>: {index}"),
        ]
        for index in range(count)
    ]


def says(right: int, stopped: int, of: int = 4) -> Callable[[Sequence[int]], list[Any]]:
    return lambda places: [Answer(at < right, at < stopped) for at in range(of)]


def measured(
    folder: Path,
    *,
    context: int = 512,
    positions: int = 1024,
    comparable: Any = None,
    answer: Any = None,
) -> Reference:
    model, tokenizer = load(folder)
    vocabulary = read_vocabulary(
        folder, json.loads((folder / "config.json").read_text())["vocab_size"]
    )
    return measure_run(
        model,
        tokenizer,
        HeldOut("test", chats()),
        folder / f"{len(list(folder.iterdir()))}.f32",
        positions=positions,
        context=context,
        comparable=comparable or vocabulary.comparable,
        answer=answer or says(2, 4),
    )


def gate(
    reference: Reference,
    gguf: Path,
    quantization: str = "f16",
    answer: Callable[[Sequence[int]], list[Any]] | None = None,
    exporting: ExportingSettings | None = None,
) -> Parity:
    runtime = LlamaCppChat(gguf, num_ctx=512, threads=1)
    try:
        return check_parity(
            reference,
            gguf,
            runtime,
            exporting or load_settings().exporting,
            answer or says(1, 4),
            quantization=quantization,
            context=512,
            threads=1,
        )
    finally:
        runtime.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("parity") / "m")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return measured(folder)


def test_a_faithful_file_passes_and_is_scored(reference: Reference, folder: Path) -> None:
    parity = gate(reference, convert_to_gguf(folder, folder / "m.gguf", "f32"), "f32")
    assert parity.passed, parity.reasons
    assert parity.mean_kl < 1e-3
    assert parity.max_difference < 1e-2
    assert parity.rows == parity.chats_rendered == parity.chats_rendered_equal == 3
    assert parity.tokens_compared == sum(row.last for row in reference.rows) > 300
    assert parity.texts_tokenized == parity.texts_tokenized_equal == 3 + len(TEXTS)
    assert (parity.answers, parity.run_answers) == (0.25, 0.5)
    assert (parity.answers_stopped, parity.run_answers_stopped, parity.answers_asked) == (4, 4, 4)
    assert json.loads(json.dumps(parity.as_dict()))["split"] == "test"


def test_the_reference_is_what_the_model_computes(reference: Reference, folder: Path) -> None:
    mx = mlx()
    model, tokenizer = load(folder)
    first = reference.rows[0]
    whole = np.array(model(mx.array([first.ids]))[0].astype(mx.float32))
    np.testing.assert_allclose(
        reference.logits.read(0, first.last), whole[-first.last :], atol=1e-4
    )
    assert reference.prompts[0].text == tokenizer.apply_chat_template(
        [m.model_dump() for m in chats()[0][:-1]], tokenize=False, add_generation_prompt=True
    )
    assert reference.ends == {tokenizer.eos_token_id: END}
    assert reference.left_out == 0
    # A long head goes through the cache in parts.
    long = (first.ids * 3)[:300]
    whole = np.array(model(mx.array([long]))[0].astype(mx.float32))
    np.testing.assert_allclose(tail_logits(model, long, 9), whole[-9:], atol=1e-3)


def test_other_weights_are_refused(reference: Reference, tmp_path: Path) -> None:
    other = write_model(tmp_path / "o", change=lambda w: w.update({k: -v for k, v in w.items()}))
    parity = gate(reference, convert_to_gguf(other, tmp_path / "o.gguf", "f16"))
    assert not parity.passed
    assert any("most likely token" in reason for reason in parity.reasons)
    assert any("KL" in reason for reason in parity.reasons)


def test_weights_that_give_no_numbers_are_refused(reference: Reference, folder: Path) -> None:
    stored = reference.logits
    positions = sum(row.last for row in reference.rows)
    lost = np.full_like(stored.read(0, positions), np.nan)
    lost.tofile(folder / "lost.f32")
    blank = Reference(
        **vars(reference) | {"logits": StoredLogits(folder / "lost.f32", stored.vocabulary)}
    )
    with np.errstate(invalid="ignore"):
        parity = gate(blank, convert_to_gguf(folder, folder / "n.gguf", "f16"))
    assert any("KL divergence is nan" in reason for reason in parity.reasons)


def retold(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same model with another tokenizer_config.json."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".json", ".safetensors", ".jinja"):
            (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "tokenizer_config.json").read_text())
    change(config)
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def test_a_wrong_template_is_refused(reference: Reference, folder: Path, tmp_path: Path) -> None:
    other = retold(folder, tmp_path / "o", lambda config: None)
    (other / "chat_template.jinja").write_text(CHAT.replace("assistant", "model"))
    parity = gate(reference, convert_to_gguf(other, tmp_path / "o.gguf", "f16"))
    assert parity.reasons == ["3 of 3 chats are rendered otherwise"]


def test_a_missing_end_is_refused(reference: Reference, folder: Path, tmp_path: Path) -> None:
    other = retold(folder, tmp_path / "o", lambda config: config.update(eos_token=PAD))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    gguf = convert_to_gguf(other, tmp_path / "o.gguf", "f16")
    assert tokenizer["added_tokens"]
    ends = {**reference.ends, 77: "word"}  # llama.cpp knows <|im_end|> by its text
    parity = gate(Reference(**vars(reference) | {"ends": ends}), gguf)
    assert parity.reasons == ["generation would not stop at word"]


def test_answers_that_do_not_end_are_refused(reference: Reference, folder: Path) -> None:
    gguf = convert_to_gguf(folder, folder / "e.gguf", "f16")
    parity = gate(reference, gguf, answer=says(0, 1))
    assert parity.reasons == ["1 of 4 answers come to an end, of the run's own 4"]
    assert gate(reference, gguf, answer=says(0, 2)).passed


def test_other_tokens_are_refused(reference: Reference, folder: Path) -> None:
    texts = [*reference.texts]
    texts[4] = type(texts[4])(texts[4].text, [*texts[4].bare, 3], texts[4].full)
    changed = Reference(**vars(reference) | {"texts": texts})
    parity = gate(changed, convert_to_gguf(folder, folder / "t.gguf", "f16"))
    assert parity.reasons == [f"llama.cpp tokenises 1 texts otherwise: {texts[4].text[:60]!r}"]


def test_text_is_compared_in_the_form_that_both_read_alike(folder: Path, tmp_path: Path) -> None:
    other = retold(folder, tmp_path / "o", lambda config: None)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "NFC"}}))
    gguf = convert_to_gguf(other, tmp_path / "o.gguf", "f16")
    parity = gate(measured(other), gguf)  # what is read from the folder knows the form
    assert parity.texts_tokenized_equal == parity.texts_tokenized == 3 + len(TEXTS)
    unaware = gate(measured(other, comparable=lambda text: text), gguf)
    assert unaware.texts_tokenized_equal < 3 + len(TEXTS)


def test_texts_that_cannot_be_compared_are_counted(folder: Path) -> None:
    partly = measured(folder, comparable=lambda text: None if "emoji" in text else text)
    parity = gate(partly, convert_to_gguf(folder, folder / "p.gguf", "f16"))
    assert (parity.texts_tokenized, parity.texts_left_out) == (2 + len(TEXTS), 1)
    report = export_report("x", Compared(parity, 1000, 1000), [], None)
    assert "10 of 10 (1 left out, which llama.cpp reads otherwise) | all |" in report


def test_rows_that_do_not_fit_are_no_comparison(folder: Path) -> None:
    with pytest.raises(BadInput, match="no held-out example fits"):
        measured(folder, context=16)


def test_no_room_for_the_logits_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_mcp.workspace.free_bytes", lambda path: 1000)
    with pytest.raises(OutOfSpace, match="compare the export"):
        measured(folder)


def test_without_answers_none_is_claimed(folder: Path) -> None:
    silent = measured(folder, positions=40, answer=says(0, 0, 0))
    gguf = convert_to_gguf(folder, folder / "s.gguf", "f16")
    parity = gate(silent, gguf, answer=says(0, 0, 0))
    assert (parity.answers, parity.run_answers, parity.tokens_compared) == (None, None, 40)


def test_the_report_shows_figures_and_the_table(reference: Reference, folder: Path) -> None:
    made = {}
    for quantization in ("f16", "q8_0"):
        path = convert_to_gguf(folder, folder / f"{quantization}.gguf", quantization)
        parity = gate(reference, path, quantization)
        made[quantization] = Compared(parity, path.stat().st_size, 100_000)
    text = export_report("q8_0 of run-a", made["q8_0"], [made["f16"]], None)
    assert text.startswith("# q8_0 of run-a\n")
    assert f"of {made['q8_0'].parity.tokens_compared} | 95% |" in text
    rows = [line.split(" | ")[0] for line in text[text.index("## Size") :].splitlines()[4:]]
    assert rows == ["| f16", "| **q8_0**"]
    assert "| passed |" in quality_table([made["f16"]], "f16")
    assert "## Size" not in export_report("x", made["f16"], [], None)
    bits = 8 * made["f16"].bytes / 100_000
    assert made["f16"].bits_per_weight == bits
    assert "**Not checked** against the run: no llama.cpp" in export_report(
        "x", None, [], "no llama.cpp"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (1234, "1.23 KB"), (11.8e6, "11.8 MB"), (7.3e9, "7.3 GB")]
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size(count) == text
