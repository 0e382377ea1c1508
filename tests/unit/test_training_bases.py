"""Names, folders and files of base models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_models import make_base, settings

from forge_mcp import machine
from forge_mcp.errors import NotFound, UnsupportedModel
from forge_mcp.training.bases import ARCHITECTURES, known_bases, load_base, resolve_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


def test_models_yaml_is_whole() -> None:
    bases = known_bases()
    assert next(iter(bases)) == "forge-nano"
    names = [name for entry in bases.values() for name in (*entry.aliases, entry.repo) if name]
    assert len(names) == len(set(names))
    for name, entry in bases.items():
        assert entry.architecture in ARCHITECTURES, name
        assert bool(entry.embedded) != bool(entry.repo), name
        if entry.repo:
            assert entry.repo.startswith("mlx-community/"), name
    alias = "unsloth/Llama-3.2-3B-Instruct-4bit"
    (owner,) = [entry for entry in bases.values() if alias in entry.aliases]
    assert owner.repo == "mlx-community/Llama-3.2-3B-Instruct-4bit"


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


def test_foreign_and_damaged_models_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_base(str(copy))
    with pytest.raises(UnsupportedModel, match="no safetensors file"):
        resolve_base(str(copy)).run_bytes(settings())
    (copy / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModel) as caught:
        resolve_base(str(copy))
    assert "'mamba'" in caught.value.cause
    (copy / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"damaged config.json"):
        resolve_base(str(copy))


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


def test_run_bytes_is_enough(folder: Path) -> None:
    small = resolve_base(str(folder)).run_bytes(settings(rank=4))
    assert small > 10_000_000
    assert resolve_base(str(folder)).run_bytes(settings(rank=64)) > small
