"""The skill `train`, the run it leaves, and opening it again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from training_models import make_base, make_dataset

from forge_mcp import machine
from forge_mcp.errors import (
    BadInput,
    CorruptArtifact,
    GateRefused,
    InvalidSettings,
    NotFound,
    OutOfSpace,
    UnsupportedModel,
)
from forge_mcp.pipeline.retrain import RetrainRequest, retrain
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import TrainRequest, TrainResult, chosen_base, train
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace

mx = machine.mlx()
SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_python_repo"
HOW: dict[str, Any] = {"epochs": 2, "max_steps": 4, "learning_rate": 5e-3}


class Trained(NamedTuple):
    context: SkillContext
    base: Path
    dataset: Artifact
    result: TrainResult
    artifact: Artifact
    events: list[Event]


def context_in(folder: Path, events: list[Event]) -> SkillContext:
    call = {"training": {"eval_steps": 2, "warmup_steps": 1, "rank": 4, "lora_alpha": 8.0}}
    return SkillContext(
        workspace=Workspace(folder / "forge"),
        settings=load_settings(call=call),
        project="demo",
        sink=events.append,
        stage="train",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    base = make_base(folder / "base", "qwen2", tied=False)
    events: list[Event] = []
    context = context_in(folder, events)
    dataset = make_dataset(context.workspace, "demo")
    request = TrainRequest(dataset=dataset.id, base=str(base), **HOW)
    result = train(request, context)
    return Trained(
        context, base, dataset, result, context.workspace.load(result.run_id), list(events)
    )


def test_the_result_and_the_files(trained: Trained) -> None:
    result, artifact = trained.result, trained.artifact
    assert result.steps == 4
    assert result.valid_loss is not None
    assert result.initial_valid_loss is not None
    assert result.valid_loss < result.initial_valid_loss
    assert result.peak_memory_bytes > 50e6
    assert result.tokens_per_second > 0
    assert Path(result.path) == artifact.path
    assert artifact.manifest.parents == [trained.dataset.id]
    assert {
        "adapters.safetensors",
        "initial_adapters.safetensors",
        "residual/residual.safetensors",
        "adapter_config.json",
        "metrics.jsonl",
        "loss.png",
        "training.log",
        "checkpoints/step-4/progress.json",
    } <= set(artifact.manifest.checksums)
    kinds = {event.kind for event in trained.events}
    assert {"progress", "metric"} <= kinds
    steps = [e.payload["done"] for e in trained.events if e.kind == "progress"]
    assert steps[-4:] == [1, 2, 3, 4]
    config = json.loads(artifact.file("adapter_config.json").read_text())
    assert config["system_prompt"] == "Answer."
    assert config["scaling"] == 2.0
    assert config["base"]["name"] == "base"
    assert not list((trained.context.workspace.home / "staging").iterdir())


def test_asked_again_it_returns_the_same_run(trained: Trained) -> None:
    request = TrainRequest(
        dataset=trained.dataset.id,
        base=str(trained.base),
        epochs=2,
        max_steps=4,
        learning_rate=5e-3,
    )
    assert train(request, trained.context) == trained.result
    assert len(trained.context.workspace.artifacts("run")) == 1


def test_a_loaded_run_is_what_was_judged_while_training(trained: Trained) -> None:
    from forge_mcp.training.batching import Row, read_rows, tokenise
    from forge_mcp.training.loss import evaluate
    from forge_mcp.training.run import load_run

    run = load_run(trained.artifact)
    rows = read_rows(trained.dataset.file("valid.jsonl"))
    loss = evaluate(run.model, [Row(tuple(tokenise(rows, run.tokenizer, 2048).examples))]).loss
    assert loss == pytest.approx(trained.result.valid_loss, rel=1e-6)
    assert run.base_path == trained.base.resolve()


def test_a_loaded_run_generates(trained: Trained) -> None:
    from mlx_lm.generate import stream_generate

    from forge_mcp.training.run import load_run

    run = load_run(trained.artifact)
    said = [piece.token for piece in stream_generate(run.model, run.tokenizer, "f1?", max_tokens=3)]
    assert said


def merged_logits(trained: Trained, tokens: Any) -> Any:
    """Of the base's model with the run's merged weights in it."""
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.merging import open_merged

    run = open_merged(trained.artifact)
    plain = load_base(str(trained.base)).model
    plain.load_weights([(n, mx.array(run.rows(n, 0, run.shape(n)[0]))) for n in run.names()])
    return plain(tokens)


def test_merged_weights_give_the_logits_of_the_adapters(trained: Trained) -> None:
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.run import load_run

    tokens = mx.array([[1, 40, 17, 8, 99, 200]])
    expected = load_run(trained.artifact).model(tokens)
    assert mx.abs(merged_logits(trained, tokens) - expected).max().item() < 1e-4
    before = load_base(str(trained.base)).model(tokens)
    assert mx.abs(before - expected).max().item() > 1e-2


@pytest.fixture(scope="module")
def trained_dora(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """DoRA over NF4, with dropout, and a head of its own adapted too."""
    folder = tmp_path_factory.mktemp("dora")
    base = make_base(folder / "base", "qwen2", tied=False)
    events: list[Event] = []
    context = context_in(folder, events)
    for key, value in {
        "init_method": "dora",
        "quantization_type": "nf4",
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "up_proj", "lm_head"],
    }.items():
        setattr(context.settings.training, key, value)
    dataset = make_dataset(context.workspace, "demo")
    result = train(TrainRequest(dataset=dataset.id, base=str(base), **HOW), context)
    artifact = context.workspace.load(result.run_id)
    return Trained(context, base, dataset, result, artifact, list(events))


def test_a_dora_run_is_opened_and_merged(trained_dora: Trained) -> None:
    from forge_mcp.training.batching import Row, read_rows, tokenise
    from forge_mcp.training.loss import evaluate
    from forge_mcp.training.run import load_run

    result = trained_dora.result
    assert result.valid_loss is not None and result.initial_valid_loss is not None
    assert result.valid_loss < result.initial_valid_loss
    run = load_run(trained_dora.artifact)
    assert run.config["method"] == "qdora"
    assert run.config["target_modules"] == ["lm_head", "q_proj", "up_proj"]
    assert run.config["layers"]["lm_head"]["quantisation"] == {
        "type": "nf4",
        "bits": 4,
        "group_size": 64,
        "double": True,
    }
    rows = read_rows(trained_dora.dataset.file("valid.jsonl"))
    loss = evaluate(run.model, [Row(tuple(tokenise(rows, run.tokenizer, 2048).examples))]).loss
    assert loss == pytest.approx(result.valid_loss, rel=1e-6)
    tokens = mx.array([[1, 40, 17, 8, 99, 200]])
    assert mx.abs(merged_logits(trained_dora, tokens) - run.model(tokens)).max().item() < 1e-4


def test_a_changed_run_or_base_is_named(trained: Trained, tmp_path: Path) -> None:
    from forge_mcp.training.run import load_run

    home = tmp_path / "forge"
    shutil.copytree(trained.context.workspace.home, home)
    artifact = Workspace(home).load(trained.result.run_id)
    residual = artifact.path / "residual/residual.safetensors"
    whole = residual.read_bytes()
    residual.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptArtifact, match=r"residual.safetensors"):
        load_run(artifact)
    residual.write_bytes(whole)
    moved = trained.base.with_name("moved")
    trained.base.rename(moved)
    try:
        with pytest.raises(NotFound, match="base model of run-demo") as caught:
            load_run(artifact)
        assert str(trained.base) in caught.value.cause
        make_base(trained.base, "qwen2", tied=False, seed=9)
        with pytest.raises(CorruptArtifact, match="has changed"):
            load_run(artifact)
    finally:
        shutil.rmtree(trained.base, ignore_errors=True)
        moved.rename(trained.base)
    load_run(artifact)


def test_another_base_of_the_same_name_is_not_taken(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forge_mcp.training.run import load_run

    make_base(tmp_path / trained.base.name, "qwen2", tied=False, seed=9)
    for folder in (tmp_path, trained.base.parent):
        monkeypatch.chdir(folder)
        assert load_run(trained.artifact).base_path == trained.base.resolve()


def test_a_run_of_an_older_version_is_refused(trained: Trained, tmp_path: Path) -> None:
    from forge_mcp.training.run import CONFIG, load_run
    from forge_mcp.workspace import hash_file

    home = tmp_path / "forge"
    shutil.copytree(trained.context.workspace.home, home)
    artifact = Workspace(home).load(trained.result.run_id)
    config = json.loads(artifact.file(CONFIG).read_text())
    for layer in config["layers"].values():
        layer["bits"] = layer.pop("quantisation")["bits"]
    (artifact.path / CONFIG).write_text(json.dumps(config))
    artifact.manifest.checksums[CONFIG] = hash_file(artifact.path / CONFIG)
    with pytest.raises(BadInput, match="cannot be opened") as caught:
        load_run(artifact)
    assert "older version" in caught.value.cause


@pytest.fixture
def normalising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a base in the local cache whose tokenizer GGUF cannot hold."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    base = make_base(repository / "snapshots" / ("0" * 40))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "NFKC"}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    return "someone/tiny"


def test_a_cached_base_keeps_its_name_and_what_cannot_be_exported_is_told(
    tmp_path: Path, normalising: str
) -> None:
    events: list[Event] = []
    context = context_in(tmp_path, events)
    dataset = make_dataset(context.workspace, "demo")
    result = train(TrainRequest(dataset=dataset.id, base=normalising, max_steps=1), context)
    assert result.base == normalising
    config = json.loads((Path(result.path) / "adapter_config.json").read_text())
    assert config["base"]["name"] == normalising
    (warning,) = [e.payload["message"] for e in events if e.payload.get("level") == "warning"]
    assert "can be trained but not exported yet" in warning and "NFKC" in warning


def test_retrain_refuses_a_base_that_cannot_be_exported(
    tmp_path: Path, normalising: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "forge_mcp.training.supervise.train_in_child", lambda **_: pytest.fail("trained")
    )
    context = context_in(tmp_path, [])
    with pytest.raises(UnsupportedModel, match="cannot be written as GGUF"):
        retrain(RetrainRequest(repo=str(SAMPLE), base=normalising), context)


def test_the_projects_base_is_a_folder_in_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    base = make_base(tmp_path / "repo" / "models" / "tiny")
    context = replace(context_in(tmp_path, []), repository=tmp_path / "repo")
    context.settings.project.base = "models/tiny"
    assert chosen_base(None, context).path == base
    with pytest.raises(NotFound):
        chosen_base("models/tiny", context)


def test_only_validated_datasets_are_trained_on(tmp_path: Path) -> None:
    context = context_in(tmp_path, [])
    unvalidated = make_dataset(context.workspace, "demo", validated=None)
    with pytest.raises(BadInput, match="has not been validated") as caught:
        train(TrainRequest(dataset=unvalidated.id), context)
    assert f"forge-mcp validate {unvalidated.id}" in caught.value.next_step
    failed = make_dataset(context.workspace, "demo", validated=False)
    with pytest.raises(GateRefused, match="did not pass"):
        train(TrainRequest(dataset=failed.id), context)


def test_a_tracker_that_is_not_installed_is_told_before_training(trained: Trained) -> None:
    training = trained.context.settings.training.model_copy(update={"trackers": ["wandb"]})
    changed = trained.context.settings.model_copy(update={"training": training})
    before = sorted(trained.context.workspace.home.rglob("*"))
    with pytest.raises(InvalidSettings, match="wandb"):
        train(
            TrainRequest(dataset=trained.dataset.id, base=str(trained.base), rank=3),
            replace(trained.context, settings=changed),
        )
    assert sorted(trained.context.workspace.home.rglob("*")) == before


def test_a_full_disk_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_in(tmp_path, [])
    dataset = make_dataset(context.workspace, "demo")
    base = make_base(tmp_path / "base")
    monkeypatch.setattr("forge_mcp.workspace.free_bytes", lambda path: 1000)
    with pytest.raises(OutOfSpace):
        train(TrainRequest(dataset=dataset.id, base=str(base)), context)
    assert not list((context.workspace.home / "staging").iterdir())
