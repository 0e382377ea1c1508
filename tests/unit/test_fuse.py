"""The merged rows of a run, and the standalone folder that is made of them."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import training_models
from hypothesis import given, settings
from hypothesis import strategies as st
from training_models import WITHOUT_SYSTEM
from tuned_runs import (
    KINDS,
    REFERENCE_CASES,
    layout,
    logits,
    make_base,
    make_run,
    plain_model,
    quantise_base,
    reference_case,
)

from forge_mcp import machine
from forge_mcp.errors import BadInput, CorruptArtifact, ForgeError, OutOfSpace, UnsupportedModel
from forge_mcp.exporting import fuse
from forge_mcp.exporting.fuse import merge_adapters_to_base
from forge_mcp.exporting.tensors import SafetensorsFolder, write_folder
from forge_mcp.schemas.manifests import RepositoryState
from forge_mcp.training import merging
from forge_mcp.training.adapters import adapter_layers
from forge_mcp.training.merging import MergedRun, open_merged
from forge_mcp.training.run import load_run
from forge_mcp.workspace import Artifact, hash_file

mx = machine.mlx()
REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"

METHODS = ("pissa", "lora", "rslora", "dora")
FORMATS: dict[str, dict[str, Any]] = {
    "affine 4": {"quantization_type": "affine"},
    "affine 8": {"quantization_type": "affine", "quantization_bits": 8},
    "mxfp4": {"quantization_type": "mxfp4"},
    "nvfp4": {"quantization_type": "nvfp4"},
    "nf4": {"quantization_type": "nf4", "double_quantization": False},
    "nf4 double": {"quantization_type": "nf4", "double_quantization": True},
}
BASES: dict[str, dict[str, Any] | None] = {  # how the base is quantised
    "float": None,
    "4 bits": {"bits": 4},
    "8 bits": {"bits": 8, "group_size": 64},
    "mxfp4": {"mode": "mxfp4"},
}
# Every kind twice, and between them every pair of method and format, and of method and base.
PAIRS = [
    (kind, method, quantised, list(BASES)[(METHODS.index(method) + at) % len(BASES)])
    for at, (kind, (method, quantised)) in enumerate(
        zip([*KINDS, *KINDS], product(METHODS, FORMATS), strict=True)
    )
]


def whole(run: MergedRun, name: str) -> Any:
    return run.rows(name, 0, run.shape(name)[0])


# -- fused = adapter -------------------------------------------------------------------------------


def test_the_pairs_are_all_there() -> None:
    assert {kind for kind, *_ in PAIRS} == set(KINDS)
    assert {(method, base) for _, method, _, base in PAIRS} == set(product(METHODS, BASES))


@pytest.mark.parametrize(("kind", "method", "quantised", "base"), PAIRS)
def test_the_fused_folder_is_the_run(
    tmp_path: Path, kind: str, method: str, quantised: str, base: str
) -> None:
    folder = make_base(tmp_path / "base", kind, tied=method in ("pissa", "dora"))
    how = BASES[base]
    if how is not None:
        folder = quantise_base(folder, tmp_path / "quantised", **how)
    artifact = make_run(tmp_path / "home", folder, init_method=method, **FORMATS[quantised])
    fused = merge_adapters_to_base(open_merged(artifact), tmp_path / "fused", "float32")
    expected = logits(load_run(artifact).model)
    assert np.abs(logits(plain_model(fused)) - expected).max() < 1e-4
    assert np.abs(logits(plain_model(folder)) - expected).max() > 1e-2


@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_transformers_opens_the_folder_and_computes_the_same(tmp_path: Path, case: str) -> None:
    """fixtures/references/exports.npz: what transformers made of this very folder."""
    reference_case(tmp_path, case)
    with np.load(REFERENCES / "exports.npz") as reference:
        expected = reference[f"{case}.fused"]
        opened = bytes(reference[f"{case}.layout"])[:32].hex()
    found = logits(plain_model(tmp_path / "fused"))[-len(expected) :]
    # mlx-lm's Gemma computes GELU itself where transformers approximates it.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert layout(tmp_path / "fused") == opened, "another folder: run 'make references'"


# -- rows ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*FORMATS, "base's own"])
def merged(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run in some format, and each adapted layer's whole weight as training computes it."""
    folder = tmp_path_factory.mktemp("rows")
    base = make_base(folder / "base", tied=False)
    if request.param == "base's own":
        base = quantise_base(base, folder / "quantised", group_size=64)
        how = FORMATS["affine 4"] | {"init_method": "lora"}
    else:
        how = FORMATS[request.param] | {"init_method": "dora" if "8" in request.param else "pissa"}
    # A head of 259 rows, and two groups in each: the blocks of 256 of NF4's scales end within it.
    targets = ["q_proj", "down_proj", "lm_head"]
    if "nf4" in request.param:
        how["quantization_group_size"] = 32
    artifact = make_run(folder / "home", base, target_modules=targets, **how)
    layers = {
        f"{path}.weight": np.array(layer.merged())
        for path, layer in adapter_layers(load_run(artifact).model)
    }
    return open_merged(artifact), layers


@given(data=st.data())
@settings(max_examples=40)
def test_any_slice_is_that_of_the_whole_weight(merged: Any, data: st.DataObject) -> None:
    run, layers = merged
    others = ["model.embed_tokens.weight", "model.norm.weight"]
    name = data.draw(st.sampled_from(["lm_head.weight", *run.adapted(), *others]))
    rows = run.shape(name)[0]
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start, rows))
    found = run.rows(name, start, stop)
    assert found.dtype == np.float32 and found.shape == (stop - start, *run.shape(name)[1:])
    expected = layers[name] if name in layers else run.base_rows(name, 0, rows)
    np.testing.assert_allclose(found, expected[start:stop], atol=2e-6)


def test_names_and_shapes_are_those_of_the_base(tmp_path: Path) -> None:
    for tied in (True, False):
        base = make_base(tmp_path / str(tied), "qwen2", tied=tied)
        run = open_merged(make_run(tmp_path / f"home {tied}", base))
        stored = mx.load(str(base / "model.safetensors"))
        assert {name: run.shape(name) for name in run.names()} == {
            name: array.shape for name, array in stored.items()
        }
        assert ("lm_head.weight" in run.names()) is not tied
        assert run.config["tie_word_embeddings"] is tied
        assert run.dtype == "float16"
        assert set(run.names()) - set(run.adapted()) == {
            name for name in stored if not name.endswith("_proj.weight")
        }
        for name in set(run.names()) - set(run.adapted()):
            assert (whole(run, name) == np.array(stored[name].astype(mx.float32))).all()


def test_a_head_of_its_own_is_adapted(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False)
    artifact = make_run(tmp_path / "home", base, target_modules=["q_proj", "lm_head"])
    run = open_merged(artifact)
    assert "lm_head.weight" in run.adapted()
    fused = merge_adapters_to_base(run, tmp_path / "fused", "float32")
    assert np.abs(logits(plain_model(fused)) - logits(load_run(artifact).model)).max() < 1e-4
    stored = np.array(mx.load(str(base / "model.safetensors"))["lm_head.weight"].astype(mx.float32))
    assert np.abs(whole(run, "lm_head.weight") - stored).max() > 0.01


def test_layers_that_stay_quantised_are_those_mlx_lm_dequantises(tmp_path: Path) -> None:
    """Bits differ from layer to layer, as config.json says; embeddings are quantised too."""
    from mlx_lm.utils import dequantize_model, load_model

    def mixed(path: str, module: Any) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        return {"bits": 8 if "v_proj" in path else 3, "group_size": 32}

    base = make_base(tmp_path / "base", tied=False)
    base = quantise_base(base, tmp_path / "quantised", quant_predicate=mixed)
    run = open_merged(make_run(tmp_path / "home", base, target_modules=["q_proj"]))
    assert run.base_is_quantised
    assert "quantization" not in run.config and "quantization_config" not in run.config
    plain = dequantize_model(load_model(base)[0])
    from mlx.utils import tree_flatten

    expected = dict(tree_flatten(plain.parameters()))
    assert set(expected) == set(run.names())
    for name in set(run.names()) - set(run.adapted()):
        assert (whole(run, name) == np.array(expected[name].astype(mx.float32))).all(), name


def awq(base: Path, target: Path) -> Path:
    """A base whose K and V are packed as AutoAWQ packs them: random weights."""
    target.mkdir()
    weights = dict(mx.load(str(base / "model.safetensors")))
    random = np.random.default_rng(5)
    for name in [name for name in weights if "k_proj.weight" in name or "v_proj.weight" in name]:
        rows, width = weights.pop(name).shape
        stem = name.removesuffix(".weight")
        packed = random.integers(0, 2**31, (width, rows // 8), dtype=np.int64).astype(np.uint32)
        weights[f"{stem}.qweight"] = mx.array(packed)
        weights[f"{stem}.scales"] = mx.array(random.uniform(0.01, 0.02, (width // 32, rows)))
        weights[f"{stem}.scales"] = weights[f"{stem}.scales"].astype(mx.float16)
    mx.save_safetensors(str(target / "model.safetensors"), weights)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32}
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, target / name)
    return target


def test_a_base_that_mlx_lm_packs_anew_is_merged_too(tmp_path: Path) -> None:
    # K and V of (16, 512) with groups of 32: their scales have the same shape in both packings.
    with patch.dict(training_models.SHAPE, hidden_size=512, num_key_value_heads=1):
        base = awq(make_base(tmp_path / "base", tied=False), tmp_path / "awq")
    artifact = make_run(tmp_path / "home", base, target_modules=["q_proj"])
    run = open_merged(artifact)
    assert "quantization_config" not in run.config
    fused = merge_adapters_to_base(run, tmp_path / "fused", "float32")
    assert np.abs(logits(plain_model(fused)) - logits(load_run(artifact).model)).max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_base_in_shards_and_in_another_type(tmp_path: Path, dtype: str) -> None:
    base = make_base(tmp_path / "base", tied=False)
    weights = {
        name: array.astype(getattr(mx, dtype))
        for name, array in mx.load(str(base / "model.safetensors")).items()
    }
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2]}
    files["model-00002-of-00002.safetensors"] = names[1::2]
    (base / "model.safetensors").unlink()
    for file, some in files.items():
        mx.save_safetensors(str(base / file), {name: weights[name] for name in some})
    index = {name: file for file, some in files.items() for name in some}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    artifact = make_run(tmp_path / "home", base)
    run = open_merged(artifact)
    assert run.dtype == dtype
    assert sorted(run.names()) == names
    embedding = np.array(weights["model.embed_tokens.weight"].astype(mx.float32))
    assert (run.rows("model.embed_tokens.weight", 3, 9) == embedding[3:9]).all()
    fused = merge_adapters_to_base(run, tmp_path / "fused", "float32")
    assert np.abs(logits(plain_model(fused)) - logits(load_run(artifact).model)).max() < 1e-4


def test_a_slice_reads_only_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = quantise_base(make_base(tmp_path / "base"), tmp_path / "quantised")
    run = open_merged(make_run(tmp_path / "home", base, quantization_type="nf4"))
    fromfile, counts = np.fromfile, []

    def counted(file: Any, dtype: Any, count: int, **options: Any) -> Any:
        counts.append(count * np.dtype(dtype).itemsize)
        return fromfile(file, dtype, count, **options)

    monkeypatch.setattr(np, "fromfile", counted)
    run.rows("model.embed_tokens.weight", 100, 102)
    assert sum(counts) == 2 * (64 // 2 + 2 * 2 * 2)  # four bits, and two scales and biases each
    counts.clear()
    run.rows("model.layers.0.mlp.up_proj.weight", 100, 102)
    a, b = 4 * 4 * 64, 2 * 4 * 4
    assert sum(counts) == a + b + 2 * 64 // 2 + 2 + 4 + 4  # codes, absmax, their scale and mean


def test_threads_read_the_same(tmp_path: Path) -> None:
    run = open_merged(make_run(tmp_path / "home", make_base(tmp_path / "base")))
    names = run.names() * 3
    alone = [whole(run, name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(partial(whole, run), names), alone, strict=True):
            assert (found == expected).all()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    artifact = make_run(tmp_path / "home", make_base(tmp_path / "base"))
    run = open_merged(artifact)
    residual = artifact.file("residual/residual.safetensors")
    content = residual.read_bytes()
    residual.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifact, match=r"residual\.safetensors is shorter") as caught:
        for name in run.adapted():
            whole(run, name)
    assert "inside the tensor" in caught.value.cause
    with pytest.raises(CorruptArtifact, match=r"residual\.safetensors"):
        open_merged(artifact)
    residual.write_bytes(content)
    initial = artifact.file("initial_adapters.safetensors")
    initial.write_bytes(initial.read_bytes()[:-1] + b"?")
    again = open_merged(artifact)
    assert again.factors(again.adapted()[0]).a.shape == (4, 64)
    with pytest.raises(CorruptArtifact, match="initial_adapters"):
        again.initial_factors(again.adapted()[0])


# -- the folder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("fuse")
    base = make_base(folder / "base", "gemma2")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "code.Model"}, "_name_or_path": "/somewhere"}
    config |= {"torch_dtype": "float16"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    (base / "tokenizer.model").write_bytes(b"pieces")
    state = RepositoryState(path="/home/me/demo", revision="abc123", dirty=True)
    return make_run(folder / "home", base, repository=state)


@pytest.mark.parametrize(
    ("dtype", "stored", "rounding"),
    [("float16", "F16", 2**-11), ("bfloat16", "BF16", 2**-8), ("float32", "F32", 0)],
)
def test_types_and_progress(
    tmp_path: Path, artifact: Artifact, dtype: Any, stored: str, rounding: float
) -> None:
    run = open_merged(artifact)
    done: list[tuple[int, int]] = []
    folder = merge_adapters_to_base(
        run, tmp_path / "a" / "fused", dtype, progress=lambda *counts: done.append(counts)
    )
    assert done == [(number + 1, len(run.names())) for number in range(len(run.names()))]
    tensors = SafetensorsFolder(folder)
    assert set(tensors.names()) == set(run.names())
    for name in run.names():
        assert tensors.dtype(name) == stored
        expected = whole(run, name)
        found = tensors.rows(name, 0, len(expected))
        assert (np.abs(found - expected) <= rounding * np.abs(expected) + rounding * 1e-4).all()
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_what_stands_beside_the_weights(tmp_path: Path, artifact: Artifact) -> None:
    from mlx_lm.utils import load

    folder = merge_adapters_to_base(open_merged(artifact), tmp_path / "fused")
    config = json.loads((folder / "config.json").read_text())
    assert not {"auto_map", "_name_or_path", "torch_dtype", "quantization"} & set(config)
    assert config["model_type"] == "gemma2" and config["tie_word_embeddings"] is True
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [2, 0]}
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    # As it was trained: the template that refuses a system message is folded.
    tokenizer = load(str(folder))[1]
    assert tokenizer.chat_template.endswith(WITHOUT_SYSTEM)
    assert tokenizer.chat_template != WITHOUT_SYSTEM
    card = (folder / "README.md").read_text()
    for said in (
        "license: mit\n",
        "| licence of the base | mit |",
        "| repository revision | abc123, with uncommitted changes |",
        f"| run | {artifact.id} (",
        "| dataset | ds-demo-1 |",
        "| method | pissa, rank 4, alpha 4 |",
        "(float16)",
    ):
        assert said in card
    assert "/home/me" not in card and str(artifact.path) not in card


def test_a_model_that_sees_becomes_a_model_of_text(tmp_path: Path) -> None:
    """What its config leaves to a default is said: transformers has other ones for the text part
    alone."""
    base = make_base(tmp_path / "base", "gemma3")
    config = json.loads((base / "config.json").read_text())
    defaults = {"rms_norm_eps": 1e-6}
    for key in defaults:
        del config["text_config"][key]
    (base / "config.json").write_text(json.dumps(config))
    run = open_merged(make_run(tmp_path / "home", base))
    assert all(name.startswith("model.") for name in run.names())
    fused = merge_adapters_to_base(run, tmp_path / "fused")
    found = json.loads((fused / "config.json").read_text())
    assert "vision_config" not in found and "text_config" not in found
    assert found["model_type"] == "gemma3_text"
    assert found["architectures"] == ["Gemma3ForCausalLM"]
    assert found["eos_token_id"] == 2
    assert defaults.items() <= found.items()


def test_large_models_are_written_in_shards(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse, "write_folder", partial(write_folder, shard_bytes=50_000))
    folder = merge_adapters_to_base(open_merged(artifact), tmp_path / "fused", "float32")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(open_merged(artifact).names())
    assert np.abs(logits(plain_model(folder)) - logits(load_run(artifact).model)).max() < 1e-4


@pytest.mark.parametrize(("value", "cause"), [(1e6, "1e+06"), (float("nan"), "diverged")])
def test_a_value_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, value: float, cause: str
) -> None:
    base = make_base(tmp_path / "base")
    weights = dict(mx.load(str(base / "model.safetensors")))
    weights = {name: array.astype(mx.float32) for name, array in weights.items()}
    weights["model.norm.weight"] = mx.full((64,), value)
    mx.save_safetensors(str(base / "model.safetensors"), weights)
    run = open_merged(make_run(tmp_path / "home", base))
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight") as caught:
        merge_adapters_to_base(run, tmp_path / "fused")
    assert cause in caught.value.cause
    assert not list((tmp_path / "fused").glob("*.safetensors*"))
    if value == 1e6:
        assert merge_adapters_to_base(run, tmp_path / "fused", "bfloat16").is_dir()


def refusing(error: OSError) -> Callable[..., None]:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise error

    return refuse


def test_a_full_disk_is_told_before_and_while_writing(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_merged(artifact)
    with monkeypatch.context() as patched:
        patched.setattr("forge_mcp.workspace.free_bytes", lambda path: 1000)
        with pytest.raises(OutOfSpace, match="weights"):
            merge_adapters_to_base(run, tmp_path / "before")
        assert list((tmp_path / "before").iterdir()) == []
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr("forge_mcp.exporting.tensors.fsync_path", refusing(full))
        with pytest.raises(OutOfSpace, match=r"model\.safetensors"):
            merge_adapters_to_base(run, tmp_path / "while")
        assert list((tmp_path / "while").iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr(type(run.tokenizer._tokenizer), "save_pretrained", refusing(full))
        with pytest.raises(OutOfSpace, match="merged model"):
            merge_adapters_to_base(run, tmp_path / "after")
    (tmp_path / "file").write_text("")
    with pytest.raises(ForgeError, match="folder of the merged model"):
        merge_adapters_to_base(run, tmp_path / "file" / "fused")


def test_a_run_of_an_older_version_is_refused(tmp_path: Path) -> None:
    artifact = make_run(tmp_path / "home", make_base(tmp_path / "base"))
    path = artifact.file("adapter_config.json")
    config = json.loads(path.read_text())
    for layer in config["layers"].values():
        del layer["shape"]
    path.write_text(json.dumps(config))
    artifact.manifest.checksums[path.name] = hash_file(path)
    with pytest.raises(BadInput, match="cannot be opened"):
        open_merged(artifact)


def test_nothing_is_materialised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a run reads headers only: no array of it is computed."""
    artifact = make_run(tmp_path / "home", make_base(tmp_path / "base"))
    asked: list[Any] = []
    monkeypatch.setattr(mx, "eval", lambda *arrays: asked.append(arrays))
    monkeypatch.setattr(merging._StoredArrays, "read", lambda *arguments: asked.append(arguments))
    open_merged(artifact)
    assert asked == []
