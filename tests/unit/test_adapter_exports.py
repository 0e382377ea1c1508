"""A run's adapters for the untouched base: in PEFT's format, and as a GGUF adapter."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tuned_runs import (
    KINDS,
    REFERENCE_CASES,
    TOKENS,
    layout,
    logits,
    make_base,
    make_run,
    quantise_base,
    reference_case,
)

from forge_mcp import machine
from forge_mcp.errors import ForgeError, OutOfSpace, UnsupportedModel
from forge_mcp.exporting.cards import base_names
from forge_mcp.exporting.fuse import merge_adapters_to_base
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.gguf_lora import export_gguf_lora
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.peft import export_peft, lora_over_base, measure_error
from forge_mcp.exporting.tensors import SafetensorsFile, from_source, write_folder
from forge_mcp.training.bases import load_base
from forge_mcp.training.merging import MergedRun, open_merged
from forge_mcp.workspace import Artifact

mx = machine.mlx()
REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"


def whole(run: MergedRun, name: str) -> NDArray[np.float32]:
    return run.rows(name, 0, run.shape(name)[0])


def base_weight(run: MergedRun, name: str) -> NDArray[np.float32]:
    return run.base_rows(name, 0, run.shape(name)[0])


def with_changed(base: Path, weights: dict[str, NDArray[np.float32]]) -> Any:
    """The base's model with some weights exchanged."""
    model = load_base(str(base)).model
    prefix = "language_model." if "language_model" in model else ""
    changed = [(prefix + name, mx.array(weight)) for name, weight in weights.items()]
    model.load_weights(changed, strict=False)
    return model


# -- PEFT ------------------------------------------------------------------------------------------


def peft_weight(run: MergedRun, name: str, folder: Path) -> NDArray[np.float32]:
    """W + alpha / r * B A (rsLoRA: / sqrt(r)) of the files, with DoRA's magnitudes: what PEFT
    documents to compute."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = SafetensorsFile(folder / "adapter_model.safetensors")
    path = run.module_path(name)

    def read(key: str) -> NDArray[np.float32]:
        stored = f"base_model.model.{path}.{key}"
        return tensors.rows(stored, 0, tensors.shape(stored)[0])

    pattern = path.replace(".", r"\.")
    rank = config["rank_pattern"].get(pattern, config["r"])
    alpha = config["alpha_pattern"].get(pattern, config["lora_alpha"])
    a, b = read("lora_A.weight"), read("lora_B.weight")
    assert a.shape[0] == b.shape[1] == rank
    scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
    weight = base_weight(run, name) + np.float32(scaling) * (b @ a)
    if config["use_dora"]:
        length = np.linalg.norm(weight, axis=1)
        weight *= (read("lora_magnitude_vector") / length)[:, None]
    return weight


@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_peft_opens_the_adapter_and_computes_the_same(tmp_path: Path, case: str) -> None:
    """fixtures/references/exports.npz: what PEFT made of this very folder over the base."""
    run = reference_case(tmp_path, case)
    with np.load(REFERENCES / "exports.npz") as reference:
        expected = reference[f"{case}.peft"]
        opened = bytes(reference[f"{case}.layout"])[32:].hex()
    changed = {name: peft_weight(run, name, tmp_path / "peft") for name in run.adapted()}
    found = logits(with_changed(tmp_path / "base", changed))[-len(expected) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert layout(tmp_path / "peft") == opened, "another folder: run 'make references'"


def test_pissa_becomes_the_lora_that_peft_itself_makes_of_it() -> None:
    with np.load(REFERENCES / "exports.npz") as peft:
        first = SimpleNamespace(a=peft["pissa.a0"], b=peft["pissa.b0"], magnitude=None)
        last = SimpleNamespace(a=peft["pissa.a"], b=peft["pissa.b"], magnitude=None)
        run: Any = SimpleNamespace(
            method="pissa",
            scaling=float(peft["pissa.scaling"]),
            factors=lambda name: (last.a, last.b, None),
            initial_factors=lambda name: (first.a, first.b, None),
        )
        a, b, scaling = lora_over_base(run, "q")
        assert a.shape[0] == b.shape[1] == 2 * len(first.a)
        np.testing.assert_allclose(scaling * b @ a, peft["pissa.change"], atol=1e-6)
        assert np.abs(peft["pissa.change"]).max() > 0.05


@pytest.mark.parametrize("method", ["pissa", "lora", "rslora", "dora"])
def test_the_error_in_the_card_is_the_one_there_is(tmp_path: Path, method: str) -> None:
    base = make_base(tmp_path / "base", "qwen2", tied=False)
    artifact = make_run(tmp_path / "home", base, init_method=method)
    folder = export_peft(artifact, tmp_path / "peft")
    run = open_merged(artifact)
    errors = {}
    for name in run.adapted():
        merged = whole(run, name)
        lost = peft_weight(run, name, folder) - merged
        errors[name] = float(np.linalg.norm(lost) / np.linalg.norm(merged))
    found = measure_error(run)
    assert found.mean == pytest.approx(sum(errors.values()) / len(errors), rel=1e-4)
    assert found.largest == pytest.approx(max(errors.values()), rel=1e-4)
    assert found.where == max(errors, key=errors.__getitem__)
    assert 0.02 < found.mean < 0.2  # four bits
    card = (folder / "README.md").read_text()
    assert f"by {found.mean:.3g} (mean" in card and f"{found.largest:.3g} ({found.where})" in card
    assert {"pissa": "plain LoRA of twice the rank", "dora": "magnitude"}.get(
        method, "trained over quantised weights"
    ) in card
    assert "itself quantised" not in card


def test_more_rounds_of_qpissa_leave_a_smaller_error(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    errors = [
        measure_error(
            open_merged(
                make_run(tmp_path / f"home{rounds}", base, rank=16, qpissa_iterations=rounds)
            )
        ).mean
        for rounds in (1, 5)
    ]
    assert errors[1] < errors[0]


def test_over_a_base_of_the_same_format_the_adapter_is_exact(tmp_path: Path) -> None:
    base = quantise_base(make_base(tmp_path / "base"), tmp_path / "quantised", mode="mxfp4")
    artifact = make_run(tmp_path / "home", base, init_method="lora", quantization_type="mxfp4")
    run = open_merged(artifact)
    assert measure_error(run).largest < 1e-6
    card = (export_peft(run, tmp_path / "peft") / "README.md").read_text()
    assert "The base that the run was trained on is itself quantised" in card


def named(name: str, folder: Path, quantised: bool = False) -> Any:
    """What a card asks of a run about its base."""
    base = SimpleNamespace(name=name)
    return SimpleNamespace(base=base, base_path=folder, base_is_quantised=quantised)


@pytest.mark.parametrize(
    ("name", "original", "license"),
    [
        ("gemma-3-1b", "google/gemma-3-1b-it", "gemma"),
        ("mlx-community/Qwen3-0.6B-4bit", "Qwen/Qwen3-0.6B", "Apache-2.0"),
        ("someone/tiny", "someone/tiny", None),
        ("forge-nano", None, "Apache-2.0"),
        ("base", None, None),
    ],
)
def test_the_base_is_called_as_the_hub_calls_it(
    tmp_path: Path, name: str, original: str | None, license: str | None
) -> None:
    run = named(name, tmp_path)
    assert base_names(run) == (name, original, license)


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("---\ntags: [a]\nlicense: 'cc-by-4.0'\n---\nlicense: no", "cc-by-4.0"),
        ("---\nlicense:\n- mit\n- other\n---\n", "mit"),
        ("---\nlicense:\ntags: [a]\n---\n", None),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("# Model\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),
    ],
)
def test_a_license_is_read_from_the_front_matter_only(
    tmp_path: Path, text: str, license: str | None
) -> None:
    (tmp_path / "README.md").write_text(text)
    assert base_names(named("base", tmp_path)).license == license


def test_a_quantised_base_says_itself_what_it_was_made_of(tmp_path: Path) -> None:
    card = "---\nbase_model: someone/float\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert base_names(named("other/tiny", tmp_path)).original == "other/tiny"
    assert base_names(named("other/tiny", tmp_path, True)).original == "someone/float"
    (tmp_path / "README.md").write_text(card.replace(" someone", "\n  - someone"))
    assert base_names(named("base", tmp_path, True)).original == "someone/float"
    (tmp_path / "README.md").write_text("")
    assert base_names(named("other/tiny", tmp_path, True)).original == "other/tiny"


def test_a_known_base_is_named_in_card_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_merged(make_run(tmp_path / "home", make_base(tmp_path / "base")))
    monkeypatch.setattr(run, "base", SimpleNamespace(name="qwen2.5-coder-3b", weights_sha256="0"))
    folder = export_peft(run, tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Qwen/Qwen2.5-Coder-3B-Instruct"
    card = (folder / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-Coder-3B-Instruct\n" in card
    assert "license: other\nlicense_name: qwen-research\n" in card
    assert "| base | qwen2.5-coder-3b (of Qwen/Qwen2.5-Coder-3B-Instruct) |" in card
    assert "repository revision" not in card  # the manifest has none


# -- GGUF ------------------------------------------------------------------------------------------


def speakable(folder: Path) -> Path:
    """The base with a merge in its tokenizer: llama.cpp takes no BPE without one."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary["aa"] = vocabulary.pop(last)
    tokenizer["model"]["merges"] = [["a", "a"]]
    path.write_text(json.dumps(tokenizer))
    return folder


def gguf_logits(path: Path, adapter: Path | None = None) -> NDArray[np.float32]:
    with GgufModel(path, context=64, threads=1, exact=True) as file:
        if adapter is not None:
            file.with_adapter(adapter)
        found: NDArray[np.float32] = file.logits(TOKENS, len(TOKENS))
    return found


METHODS = ("pissa", "lora", "rslora")


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, METHODS[at % len(METHODS)]) for at, kind in enumerate(KINDS)],
)
def test_llama_cpp_adds_the_adapter_to_the_base(tmp_path: Path, kind: str, method: str) -> None:
    """Rank 40 is more than K and V have, so that ranks differ from layer to layer."""
    base = speakable(make_base(tmp_path / "base", kind, tied=method == "pissa"))
    run = open_merged(
        make_run(tmp_path / "home", base, init_method=method, rank=40, lora_alpha=20.0)
    )
    adapter = export_gguf_lora(run, tmp_path / "adapter.gguf")
    weights = dict(mx.load(str(base / "model.safetensors")))
    prefix = "language_model." if kind == "gemma3" else ""
    for name in run.adapted():
        a, b, scaling = lora_over_base(run, name)
        weights[prefix + name] = mx.array(base_weight(run, name) + np.float32(scaling) * (b @ a))
    changed = tmp_path / "changed"
    shutil.copytree(base, changed)
    mx.save_safetensors(str(changed / "model.safetensors"), weights)
    expected = gguf_logits(convert_to_gguf(changed, tmp_path / "changed.gguf", "f32"))
    file = convert_to_gguf(base, tmp_path / "base.gguf", "f32")
    assert np.abs(gguf_logits(file, adapter) - expected).max() < 1e-3
    assert np.abs(gguf_logits(file) - expected).max() > 0.1


def test_base_and_adapter_are_the_fused_model(tmp_path: Path) -> None:
    """Over weights of its own format a LoRA is exact: the GGUF of the fused folder is the same."""
    base = speakable(make_base(tmp_path / "base", "llama", tied=False))
    quantised = quantise_base(base, tmp_path / "quantised", mode="mxfp4")
    run = open_merged(
        make_run(tmp_path / "home", quantised, init_method="lora", quantization_type="mxfp4")
    )
    fused = merge_adapters_to_base(run, tmp_path / "fused", "float32")
    untouched = tmp_path / "untouched"
    shutil.copytree(fused, untouched)
    (untouched / "model.safetensors").unlink()
    source = SimpleNamespace(names=run.names, shape=run.shape, rows=run.base_rows)
    write_folder(untouched, [from_source(source, name, "F32") for name in run.names()])
    adapter = export_gguf_lora(run, tmp_path / "adapter.gguf")
    expected = gguf_logits(convert_to_gguf(fused, tmp_path / "fused.gguf", "f32"))
    file = convert_to_gguf(untouched, tmp_path / "untouched.gguf", "f32")
    assert np.abs(gguf_logits(file, adapter) - expected).max() < 1e-3
    assert np.abs(gguf_logits(file) - expected).max() > 0.1


def test_what_the_file_says(tmp_path: Path) -> None:
    from gguf import GGUFReader

    base = make_base(tmp_path / "base", tied=False)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    artifact = make_run(
        tmp_path / "home",
        base,
        init_method="rslora",
        rank=4,
        lora_alpha=6.0,
        target_modules=["q_proj", "lm_head"],
    )
    reader = GGUFReader(export_gguf_lora(artifact, tmp_path / "adapter.gguf"))
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["general.type"] == "adapter"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 12.0  # 6 / sqrt(4) * 4
    assert said["general.base_model.0.name"] == "base"
    assert said["general.license"] == "mit"
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert set(shapes) == {
        f"{name}.weight.lora_{factor}"
        for name in ("blk.0.attn_q", "blk.1.attn_q", "output")
        for factor in "ab"
    }
    assert shapes["output.weight.lora_a"] == [64, 4]  # GGUF counts the other way round
    assert shapes["output.weight.lora_b"] == [4, 259]
    assert list(tmp_path.glob("*.partial")) == []


def test_dora_is_refused_as_gguf(tmp_path: Path) -> None:
    artifact = make_run(tmp_path / "home", make_base(tmp_path / "base"), init_method="dora")
    with pytest.raises(UnsupportedModel, match="cannot be written as GGUF") as caught:
        export_gguf_lora(artifact, tmp_path / "adapter.gguf")
    assert "DoRA" in caught.value.cause
    assert f"forge-mcp export {artifact.id}" in caught.value.next_step
    assert list(tmp_path.glob("adapter.gguf*")) == []


def test_a_layer_that_llama_cpp_does_not_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_merged(make_run(tmp_path / "home", make_base(tmp_path / "base")))
    monkeypatch.setattr(run, "adapted", lambda: ["model.layers.0.odd.weight"])
    with pytest.raises(UnsupportedModel) as caught:
        export_gguf_lora(run, tmp_path / "adapter.gguf")
    assert "no place for model.layers.0.odd.weight" in caught.value.cause


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_run(tmp_path / "home", make_base(tmp_path / "base"))


def test_a_full_disk_is_told(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("forge_mcp.workspace.free_bytes", lambda path: 1000)
        with pytest.raises(OutOfSpace, match=r"adapter\.gguf"):
            export_gguf_lora(artifact, out / "adapter.gguf")
        with pytest.raises(OutOfSpace, match=r"adapter_model\.safetensors"):
            export_peft(artifact, out / "peft")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("forge_mcp.exporting.gguf_lora.fsync_path", full)
        with pytest.raises(OutOfSpace, match=r"adapter\.gguf"):
            export_gguf_lora(artifact, out / "adapter.gguf")
    assert list(out.glob("adapter.gguf*")) == []
    (out / "file").write_text("")
    with pytest.raises(ForgeError, match="adapters for PEFT"):
        export_peft(artifact, out / "file" / "peft")
