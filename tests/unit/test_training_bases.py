"""Names, folders and files of base models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_models import CONFIGS, make_base, make_config, settings, write_tokenizer

from forge_mcp import machine
from forge_mcp.errors import NotFound, UnsupportedModel
from forge_mcp.settings import TrainingSettings, defaults
from forge_mcp.training.architectures import ARCHITECTURES
from forge_mcp.training.bases import known_bases, load_base, resolve_base
from forge_mcp.training.compatibility import LongRope, mlx_config
from forge_mcp.training.memory import Shape, training_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


def test_models_yaml_is_whole() -> None:
    bases = known_bases()
    assert next(iter(bases)) == "forge-nano"
    named = [(*entry.aliases, entry.repo, entry.original) for entry in bases.values()]
    names = [name for one in named for name in one if name]
    assert len(names) == len(set(names))
    for name, entry in bases.items():
        assert entry.architecture in ARCHITECTURES, name
        assert bool(entry.embedded) != bool(entry.repo), name
        assert bool(entry.original) == bool(entry.repo), name
        if entry.repo:
            assert entry.repo.startswith("mlx-community/"), name
    alias = "unsloth/Llama-3.2-3B-Instruct-4bit"
    (owner,) = [entry for entry in bases.values() if alias in entry.aliases]
    assert owner.repo == "mlx-community/Llama-3.2-3B-Instruct-4bit"


def test_models_yaml_has_the_bases_of_the_specification() -> None:
    wanted = {
        "forge-nano", "llama-3.2-1b", "llama-3.2-3b", "mistral-7b",
        *(f"qwen2.5-coder-{size}b" for size in ("0.5", "1.5", "3", "7")),
        *(f"qwen3-{size}b" for size in ("0.6", "1.7", "4", "8")),
        "gemma-2-2b", "gemma-3-1b", "gemma-3-4b", "phi-3.5-mini", "phi-4-mini",
    }  # fmt: skip
    assert set(known_bases()) == wanted


@pytest.mark.parametrize("name", list(known_bases()))
def test_sizes_follow_from_shapes(name: str) -> None:
    """What the Hub tells as the number of parameters is what the shapes add up to."""
    entry = known_bases()[name]
    assert entry.parameters == entry.shape.parameters(entry.architecture)
    how = settings(rank=entry.rank, gradient_checkpointing=True, max_seq_length=2048)
    estimate = training_bytes(entry.shape, entry.architecture, how, on_cpu=False) / 2**30
    assert entry.memory == pytest.approx(estimate, abs=0.051)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_shape_of_a_config_counts_what_mlx_lm_builds(kind: str, tmp_path: Path) -> None:
    from mlx.utils import tree_flatten

    model = load_base(str(make_base(tmp_path / "base", kind))).model
    config = make_config(kind)
    built = sum(value.size for _, value in tree_flatten(model.parameters()))
    assert Shape.of(config).parameters(config["model_type"]) == built


def test_the_estimate_follows_the_settings() -> None:
    entry = known_bases()["llama-3.2-3b"]

    def estimate(on_cpu: bool = False, **changed: Any) -> int:
        how = settings(rank=64, max_seq_length=2048, **changed)
        return training_bytes(entry.shape, "llama", how, on_cpu=on_cpu)

    plain = estimate()
    assert estimate(gradient_checkpointing=True) < plain / 2
    assert estimate(optimizer="adamw_8bit") < plain
    assert estimate(quantization_bits=8) > plain
    assert estimate(on_cpu=True) > plain + 4 * entry.parameters - 2**30


def test_advice_tells_what_is_far_from_usual() -> None:
    entry = known_bases()["llama-3.2-3b"]
    usual = settings(rank=64, learning_rate=2e-4)
    assert entry.advice(usual) is None
    assert entry.advice(settings(rank=32, learning_rate=3e-4)) is None
    said = entry.advice(settings(rank=8, learning_rate=1e-2)) or ""
    assert "rank 64 (8)" in said and "0.0002 (0.01)" in said
    assert "8,192 tokens (9,000)" in (
        known_bases()["gemma-2-2b"].advice(settings(rank=32, max_seq_length=9000)) or ""
    )
    nano = TrainingSettings.model_validate(defaults()["training"])
    assert known_bases()["forge-nano"].advice(nano) is None


def test_a_folder_is_resolved_and_loaded_as_float32_on_a_cpu(folder: Path) -> None:
    mx = machine.mlx()
    base = resolve_base(str(folder))
    assert (base.name, base.path, base.entry) == ("tiny", folder.resolve(), None)
    loaded = load_base(str(folder))
    assert loaded.dtype == "float16"
    if machine.on_cpu():
        assert loaded.model.model.embed_tokens.weight.dtype == mx.float32
    assert loaded.model(mx.array([[1, 2]])).shape == (1, 2, 259)
    assert loaded.tokenizer.eos_token_ids == {2}


def test_the_embedded_base_is_there_and_loads() -> None:
    loaded = load_base("forge-nano")
    assert loaded.entry is not None
    assert loaded.tokenizer.has_chat_template
    assert loaded.tokenizer.decode(list(loaded.tokenizer.eos_token_ids)) == "<|im_end|>"
    assert loaded.base.config["model_type"] == loaded.entry.architecture


def test_a_relative_folder_starts_where_it_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_of(folder, tmp_path / folder.name)
    assert resolve_base(folder.name).path == tmp_path / folder.name
    assert resolve_base(f"./{folder.name}", folder.parent).path == folder
    assert resolve_base("forge-nano", folder.parent).name == "forge-nano"


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, gone: str) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / gone).unlink()
    with pytest.raises(UnsupportedModel) as caught:
        resolve_base(str(copy))
    assert gone.split(".")[0] in caught.value.cause


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel) as caught:
        resolve_base(str(copy))
    assert "model-00002-of-00002.safetensors" in caught.value.cause


@pytest.mark.parametrize(
    ("content", "message", "cause"),
    [
        (b"not a model", "no safetensors file", "longer than the file"),
        (b"", "no safetensors file", "requires a buffer"),
        (b"\x02\0\0\0\0\0\0\0[]", "no safetensors file", "pop"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no safetensors file", "Git LFS"),
    ],
)
def test_weights_that_are_none_are_refused(
    folder: Path, tmp_path: Path, content: bytes, message: str, cause: str
) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        resolve_base(str(copy))
    assert cause in caught.value.cause


def test_truncated_weights_are_told_before_training(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors is truncated") as caught:
        resolve_base(str(copy))
    assert f"{len(whole):,}" in caught.value.cause
    assert "forge-mcp pull" in caught.value.next_step
    weights.write_bytes(whole + b"x")
    with pytest.raises(UnsupportedModel, match="is damaged"):
        resolve_base(str(copy))
    weights.write_bytes(whole)
    resolve_base(str(copy))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "mamba"}', "architecture"),
        ("{", r"damaged config\.json"),
        ("[]", r"damaged config\.json"),
        ("{}", "has no model_type"),
        (
            '{"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}',
            "MLX does not read",
        ),
    ],
)
def test_foreign_and_damaged_configs_are_refused(
    folder: Path, tmp_path: Path, config: str, said: str
) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / "config.json").write_text(config)
    with pytest.raises(UnsupportedModel, match=said):
        resolve_base(str(copy))


def test_a_damaged_index_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"damaged model\.safetensors\.index\.json"):
        resolve_base(str(copy))


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_base(str(copy))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model-q4_k_m.gguf", "GGUF"),
        ("pytorch_model.bin", "PyTorch"),
        ("adapter_model.safetensors", "an adapter"),
        ("consolidated.safetensors", "not named model*.safetensors"),
        ("consolidated.00.pth", ".pth"),
    ],
)
def test_a_folder_with_other_weights_says_what_to_do(
    folder: Path, tmp_path: Path, name: str, said: str
) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(UnsupportedModel, match="no weights that can be trained") as caught:
        resolve_base(str(copy))
    assert said in caught.value.cause and name in caught.value.cause
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "qwen3-0.6b", "someone/something"])
def test_what_is_not_here_is_not_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound) as caught:
        resolve_base(name)
    assert "forge-nano" in caught.value.next_step


def test_the_hub_is_offline_wherever_it_is_imported() -> None:
    script = (
        "from forge_mcp.training.bases import resolve_base\n"
        "try: resolve_base('someone/nothing')\n"
        "except Exception: pass\n"
        "import huggingface_hub; assert huggingface_hub.is_offline_mode()\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    subprocess.run([sys.executable, "-c", script], env=bare, check=True)


def test_what_is_in_the_local_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its short name and by its id, as `hf download` leaves it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--mlx-community--Qwen3-0.6B-4bit"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    make_base(snapshot, "qwen3")
    by_name = resolve_base("qwen3-0.6b")
    assert by_name.path == snapshot
    assert by_name.entry == known_bases()["qwen3-0.6b"]
    assert resolve_base("mlx-community/Qwen3-0.6B-4bit").path == snapshot


def test_checksums_tell_bases_apart(folder: Path, tmp_path: Path) -> None:
    one = resolve_base(str(folder))
    same = resolve_base(str(copy_of(folder, tmp_path / "same")))
    other = resolve_base(str(make_base(tmp_path / "other", seed=2)))
    assert one.weights_sha256 == same.weights_sha256
    assert one.weights_sha256 != other.weights_sha256
    assert one.tokenizer_sha256 == other.tokenizer_sha256


@pytest.mark.parametrize(
    "name", ["generation_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_what_decides_tokens_and_their_end_is_in_the_checksum(
    folder: Path, tmp_path: Path, name: str
) -> None:
    before = resolve_base(str(folder)).tokenizer_sha256
    copy = copy_of(folder, tmp_path / "copy")
    (copy / name).write_text("{}")
    assert resolve_base(str(copy)).tokenizer_sha256 != before


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base again, with 8 bits a weight as mlx-lm stores them."""
    from mlx_lm.utils import load_model, quantize_model, save_model

    target = copy_of(folder, tmp_path_factory.mktemp("packed") / "tiny-8bit")
    model, config = load_model(folder)
    model, config = quantize_model(model, config, group_size=32, bits=8)
    (target / "model.safetensors").unlink()
    save_model(target, model)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_quantised_base_is_loaded_and_measured(folder: Path, packed: Path) -> None:
    import numpy as np

    mx = machine.mlx()
    plain, base = resolve_base(str(folder)), resolve_base(str(packed))
    assert base.packed_bits == 8
    loaded, tokens = load_base(base), mx.array([[1, 5, 9]])
    expected = np.array(load_base(plain).model(tokens))
    assert np.allclose(np.array(loaded.model(tokens)), expected, atol=0.02 * abs(expected).max())
    assert loaded.dtype == "float16"
    assert base.run_bytes(settings()) == plain.run_bytes(settings())
    assert base.training_bytes(settings()) == plain.training_bytes(settings())


def test_training_bytes_is_the_estimate_for_its_shape(folder: Path) -> None:
    base, how = resolve_base(str(folder)), settings()
    expected = training_bytes(Shape.of(base.config), "llama", how, on_cpu=machine.on_cpu())
    assert base.training_bytes(how) == expected
    assert base.training_bytes(settings(rank=64)) > expected


def test_run_bytes_is_enough(folder: Path) -> None:
    small = resolve_base(str(folder)).run_bytes(settings(rank=4))
    assert resolve_base(str(folder)).run_bytes(settings(rank=4, keep_checkpoints=5)) > small
    assert small > 10_000_000
    assert resolve_base(str(folder)).run_bytes(settings(rank=64)) > small


# -- what mlx-lm reads otherwise -----------------------------------------------------------------


def logits(folder: Path) -> Any:
    mx = machine.mlx()
    return load_base(str(folder)).model(mx.array([[1, 5, 9, 33, 2, 7]]))


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3", "gemma3_text", "gemma3", "phi4"])
def test_a_config_of_transformers_5_computes_the_same(kind: str, tmp_path: Path) -> None:
    """It keeps the rotary embedding's numbers in `rope_parameters`, which mlx-lm overlooks."""
    mx = machine.mlx()
    folder = make_base(tmp_path / "base", kind)
    config = make_config(kind)
    part = config.get("text_config", config)
    part["rope_theta"] = 500.0
    (folder / "config.json").write_text(json.dumps(config))
    expected = logits(folder)
    scaling = part.pop("rope_scaling", {})
    rope = {"rope_type": scaling.get("type") or scaling.get("rope_type", "default"), **scaling}
    rope.pop("type", None)
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if key in part:
            rope[key] = part.pop(key)
    if kind.startswith("gemma3"):
        local = {"rope_type": "default", "rope_theta": part.pop("rope_local_base_freq")}
        rope = {"full_attention": rope, "sliding_attention": local}
        part["_sliding_window_pattern"] = part.pop("sliding_window_pattern")
    part["rope_parameters"] = rope
    (folder / "config.json").write_text(json.dumps(config))
    assert mx.array_equal(logits(folder), expected)


def test_a_config_in_mlx_lms_words_is_left_alone() -> None:
    assert mlx_config(make_config("llama3")) == {}
    assert mlx_config(make_config("gemma3")) == {}


def reference_long_rope(x: Any, offset: int, factors: list[float], scale: float) -> Any:
    """LongRoPE in numpy, as in Phi-3's own code: half of the head is turned against the other."""
    import numpy as np

    dims = 2 * len(factors)
    theta = 1 / (np.array(factors) * 10000.0 ** (np.arange(0, dims, 2) / dims))
    angles = np.outer(np.arange(offset, offset + x.shape[-2]), theta)
    cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
    left, right, rest = np.split(np.array(x, dtype=np.float64), [dims // 2, dims], axis=-1)
    turned = [left * cos - right * sin, right * cos + left * sin, rest]
    return np.concatenate(turned, axis=-1)


@pytest.mark.parametrize(("tokens", "offset", "short"), [(40, 0, True), (60, 10, False)])
def test_long_rope_takes_the_short_factors_for_short_texts(
    tokens: int, offset: int, short: bool
) -> None:
    import math

    import numpy as np

    mx = machine.mlx()
    near, far = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]
    rope = LongRope(8, 10000.0, original=64, longest=512, short=near, long=far)
    x = mx.random.normal((1, 2, tokens, 10))
    expected = reference_long_rope(
        x, offset, near if short else far, math.sqrt(1 + math.log(8) / math.log(64))
    )
    assert np.allclose(np.array(rope(x, offset)), expected, atol=1e-4)
    assert np.allclose(np.array(rope(x, mx.array(offset))), expected, atol=1e-4)


def test_phi_is_given_both_sets_of_factors(tmp_path: Path) -> None:
    model = load_base(str(make_base(tmp_path / "phi", "phi4"))).model
    ropes = [layer.self_attn.rope for layer in model.model.layers]
    assert all(isinstance(rope, LongRope) for rope in ropes)
    assert (ropes[0].dims, ropes[0].original) == (12, 256)
    plain = load_base(str(make_base(tmp_path / "llama", "llama3"))).model
    assert not isinstance(plain.model.layers[0].self_attn.rope, LongRope)


def test_a_template_without_system_message_has_it_in_the_question(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "gemma", "gemma2")
    loaded = load_base(str(folder))
    (notice,) = loaded.notices
    assert "system message" in notice
    question = {"role": "user", "content": "Why?"}
    answer = {"role": "assistant", "content": "So."}
    system = {"role": "system", "content": "Be brief."}

    def render(*messages: dict[str, str]) -> str:
        return str(loaded.tokenizer.apply_chat_template(list(messages), tokenize=False))

    folded = {"role": "user", "content": "Be brief.\n\nWhy?"}
    assert render(system, question, answer) == render(folded, answer)
    assert render(question, answer) == render(folded, answer).replace("Be brief.\n\n", "")
    assert load_base(str(make_base(tmp_path / "llama"))).notices == ()


def test_loading_lazily_reads_no_weights() -> None:
    """Counted in a process of its own: others leave arrays behind at any time."""
    script = (
        "from forge_mcp import machine; mx = machine.mlx()\n"
        "from forge_mcp.training.bases import load_base\n"
        "loaded = load_base('forge-nano', lazy=True); print(mx.get_active_memory())\n"
        "mx.eval(loaded.model.parameters()); print(mx.get_active_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    lazy, read = map(int, done.stdout.split())
    assert lazy < 1_000_000 < 12_000_000 < read


def test_a_sentencepiece_model_alone_reads_as_sentencepiece_does(tmp_path: Path) -> None:
    """A folder with tokenizer.model and no tokenizer.json."""
    import sentencepiece

    folder = make_base(tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    text = tmp_path / "text"
    text.write_text("def f(x): return x\nclass A: the quick brown fox 0123456789\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=80,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_base(str(folder)).tokenizer
    own = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    question = "class fox: return 42"
    assert tokenizer.encode(question, add_special_tokens=False) == own.encode(question)
    assert tokenizer.has_chat_template
    assert "tokenizer.model" in {path.name for path in resolve_base(str(folder)).path.iterdir()}


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_what_can_be_trained_can_be_exported(kind: str, tmp_path: Path) -> None:
    from forge_mcp.pipeline.export import require_exportable

    require_exportable(resolve_base(str(make_base(tmp_path / "base", kind))))


def test_what_cannot_be_exported_is_told_before_training(tmp_path: Path) -> None:
    from forge_mcp.pipeline.export import require_exportable

    base = resolve_base(str(make_base(tmp_path / "base")))
    base.config["rope_scaling"] = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(UnsupportedModel, match="cannot be written as GGUF") as caught:
        require_exportable(base)
    assert "dynamic" in caught.value.cause
    del base.config["rope_scaling"]
    base.config["quantization"] = {"bits": 4, "group_size": 64}
    require_exportable(base)  # what is written is not quantised


def test_a_tokenizer_without_template_is_loaded(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    write_tokenizer(folder, None)
    assert not load_base(str(folder)).tokenizer.has_chat_template
