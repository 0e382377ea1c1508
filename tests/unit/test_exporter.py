"""Fuse, GGUF, quantisation, tokens, Modelfile and the parity gate, on tiny random models."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_mcp import workspace
from forge_mcp.errors import (
    BadInput,
    UnsupportedModel,
)
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.parity import TEXTS, HeldOut, Parity, check_parity
from forge_mcp.exporting.tokenizer import SPLITS, read_vocabulary
from forge_mcp.machine import mlx
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.settings import ExportingSettings, load_settings

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
QWEN2 = next(split for split, name in SPLITS.items() if name == "qwen2")


# -- tiny models -----------------------------------------------------------------------------------


def pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel
    if name == "gpt-2":
        return byte_level(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False, use_regex=True)])
    split = next(split for split, known in SPLITS.items() if known == name)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            byte_level(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def trained(name: str) -> str:
    """A small byte-level BPE, as JSON, trained on this repository's sources."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)]
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [path.read_text() for path in sorted(Path(workspace.__file__).parent.glob("*.py"))]
    tokenizer.train_from_iterator([*texts, *TEXTS], trainer)
    tokenizer.add_tokens([AddedToken("##begin_quote##", special=False, normalized=False)])
    return str(tokenizer.to_str())


def write_tokenizer(folder: Path, name: str = "qwen2") -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(name)),
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT,
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def write_model(
    folder: Path,
    kind: str = "llama",
    *,
    tied: bool = True,
    hidden: int = 64,
    change: Callable[[dict[str, Any]], None] = lambda weights: None,
    **config: Any,
) -> Path:
    """A random model of two layers in Hugging Face format."""
    mx = mlx()
    from mlx.utils import tree_flatten

    tokenizer = write_tokenizer(folder)
    base = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer) + 3,  # padded, as many are
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "rope_theta": 10000.0,
        "eos_token_id": tokenizer.eos_token_id,
    } | config
    if kind != "qwen2":
        base.setdefault("head_dim", 32)
    module = importlib.import_module(f"mlx_lm.models.{'llama' if kind == 'mistral' else kind}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(base))
    weights = {
        name: mx.random.normal(array.shape) * (0.2 if array.ndim > 1 else 0.1)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, array in tree_flatten(model.parameters())
    }
    change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(base))
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    mlx()
    from mlx_lm.utils import load as load_folder

    model, tokenizer = load_folder(str(folder))[:2]
    return model, tokenizer


def mlx_logits(folder: Path, ids: list[int]) -> Any:
    mx = mlx()
    model, _ = load(folder)
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))


def some_ids(folder: Path, count: int = 160) -> list[int]:
    from tokenizers import Tokenizer

    text = Path(workspace.__file__).read_text()
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids[:count]
    return ids


# -- tokens ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2", "llama-bpe", "tekken", "gpt-2", "smollm"])
def both_tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GgufModel, Any]]:
    """One tokenizer in llama.cpp and in transformers."""
    folder = write_model(tmp_path_factory.mktemp(request.param) / "m")
    tokenizer = write_tokenizer(folder, request.param)
    assert read_vocabulary(folder, 700).pre == request.param
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer) + 3}))
    path = convert_to_gguf(folder, folder / "m.gguf", "f16")
    with GgufModel(path, context=64, threads=1) as file:
        yield file, tokenizer


WRITTEN = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r'\"#_.,(){}0123456789²½aZéßſÅǅʰक中🎉\u0301\u200d\u00a0\u3000"),
        st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"]),
    ),
    max_size=40,
)


@given(text=st.lists(st.one_of(WRITTEN, st.sampled_from([END, START, "##begin_quote##"]))))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_llama_cpp_reads_the_tokens_of_the_training(
    both_tokenizers: tuple[GgufModel, Any], text: list[str]
) -> None:
    file, tokenizer = both_tokenizers
    joined = "".join(text)
    assert file.tokenize(joined) == tokenizer.encode(joined, add_special_tokens=False)
    assert file.tokenize(joined, add_special=True) == tokenizer.encode(joined)


def test_the_fixed_texts_are_equal_too(both_tokenizers: tuple[GgufModel, Any]) -> None:
    file, tokenizer = both_tokenizers
    for text in TEXTS:
        assert file.tokenize(text) == tokenizer.encode(text, add_special_tokens=False), text


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer.json"
    loaded = json.loads(path.read_text())
    change(loaded)
    path.write_text(json.dumps(loaded))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\s+"),
            "unknown",
        ),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "ByteL"),
        (lambda t: t.update(pre_tokenizer=None), "pre-tokenizer"),
        (lambda t: t["model"].update(byte_fallback=True), "SentencePiece"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "Lowercase"),
    ],
)
def test_unknown_tokenizers_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    write_tokenizer(tmp_path)
    change_tokenizer(tmp_path, change)
    with pytest.raises(UnsupportedModel, match=named):
        read_vocabulary(tmp_path, 700)


def test_a_tokenizer_without_json_template_or_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path, 700)
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedModel, match="chat template"):
        read_vocabulary(tmp_path, 700)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert read_vocabulary(tmp_path, 700).chat_template == CHAT
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(UnsupportedModel, match="end-of-text"):
        read_vocabulary(tmp_path, 700)


def test_a_list_of_end_tokens_and_a_bos_reach_llama_cpp(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", eos_token_id=[2, 40, 50])
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": START}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    pieces = [
        {"SpecialToken": {"id": START, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    change_tokenizer(
        folder,
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": pieces,
                "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {START: {"id": START, "ids": [1], "tokens": [START]}},
            }
        ),
    )
    path = convert_to_gguf(folder, tmp_path / "m.gguf", "f16")
    with GgufModel(path, context=64, threads=1) as file:
        assert [file.ends(token) for token in (2, 40, 50, 60)] == [True, True, True, False]
        assert file.tokenize("def", add_special=True) == [1, *file.tokenize("def")]
        assert file.chat_template == CHAT


# -- fuse ------------------------------------------------------------------------------------------


class PlainRun:
    """A run without adapters: its fused weights are the model's own."""

    def __init__(self, folder: Path) -> None:
        self.base_path = folder
        self.model, self.tokenizer = load(folder)

    def fused_weights(self) -> Iterator[tuple[str, Any]]:
        from mlx.utils import tree_flatten

        yield from tree_flatten(self.model.parameters())


# -- parity ----------------------------------------------------------------------------------------


class PlainRuntime:
    """Renders as the tokenizer does; every answer is `text`."""

    def __init__(self, tokenizer: Any, text: str = "<ANSWER>: 1", suffix: str = "") -> None:
        self.tokenizer, self.text, self.suffix = tokenizer, text, suffix

    def render(self, messages: Any) -> str:
        rows = [message.model_dump() for message in messages]
        text: str = self.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=True
        )
        return text + self.suffix


def chats(count: int = 3) -> list[list[Message]]:
    return [
        [
            Message(role="system", content="Answer."),
            Message(role="user", content=f"def f_{index}(x): return x + {index}\n" * 6),
            Message(role="assistant", content=f"<ANSWER>: {index}"),
        ]
        for index in range(count)
    ]


def gate(run: PlainRun, gguf: Path, runtime: Any = None, **options: Any) -> Parity:
    exporting = options.pop("settings", load_settings().exporting)
    runtime = runtime or PlainRuntime(run.tokenizer)

    def score(places: Sequence[int]) -> list[Any]:
        return [
            SimpleNamespace(right=chats()[at][-1].content == runtime.text, stopped=True)
            for at in places
        ]

    return check_parity(
        run.model,
        run.tokenizer,
        gguf,
        runtime,
        HeldOut("test", chats()),
        exporting,
        score,
        quantization=options.pop("quantization", "f16"),
        context=options.pop("context", 512),
        threads=1,
    )


def test_a_faithful_file_passes_and_is_scored(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    gguf = convert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32")
    parity = gate(run, gguf, quantization="f32")
    assert parity.passed, parity.reasons
    assert parity.mean_kl < 1e-3
    assert parity.rows == 3
    assert parity.tokens_compared > 300
    assert parity.texts_tokenized == parity.texts_tokenized_equal == 3 + len(TEXTS)
    assert parity.answers == pytest.approx(1 / 3)
    assert json.loads(json.dumps(parity.as_dict()))["answers_stopped"] == 3


def test_other_weights_are_refused(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    other = write_model(tmp_path / "o", change=lambda w: w.update({k: -v for k, v in w.items()}))
    parity = gate(run, convert_to_gguf(other, tmp_path / "o.gguf", "f16"))
    assert not parity.passed
    assert any("most likely token" in reason for reason in parity.reasons)
    assert any("KL" in reason for reason in parity.reasons)


def test_another_template_other_tokens_and_a_lost_end_are_refused(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    other = write_model(tmp_path / "o")
    write_tokenizer(other, "gpt-2")
    gguf = convert_to_gguf(other, tmp_path / "o.gguf", "f16")
    run.tokenizer._eos_token_ids = {2, 77}
    parity = gate(run, gguf, PlainRuntime(run.tokenizer, suffix=" "))
    assert any("tokenises" in reason for reason in parity.reasons)
    assert any("3 of 3 chats" in reason for reason in parity.reasons)
    assert any("would not stop" in reason for reason in parity.reasons)


def test_rows_that_do_not_fit_are_no_comparison(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    gguf = convert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16")
    with pytest.raises(BadInput, match="no held-out example fits"):
        gate(run, gguf, context=16)


def test_without_answers_none_is_claimed(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    gguf = convert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16")
    fields = load_settings().exporting.model_dump() | {"parity_answers": 0, "parity_tokens": 40}
    parity = gate(run, gguf, settings=ExportingSettings.model_validate(fields))
    assert parity.answers is None
    assert parity.tokens_compared == 40
