"""The skill `export` on a real run of a scripted model: files, gate, table, adapters, faults."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from serving_house import ANSWER, House, make_house, scripted_model

from forge_mcp.errors import BadInput, Cancelled, GateRefused, OutOfSpace
from forge_mcp.exporting.fuse import merge_adapters_to_base
from forge_mcp.exporting.modelfile import parse_modelfile
from forge_mcp.exporting.quantize import QUANTIZATIONS
from forge_mcp.pipeline.export import ExportRequest, export
from forge_mcp.pipeline.skill import SkillContext


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted") / "m", ANSWER)


@pytest.fixture
def house(tmp_path: Path, base: Path) -> House:
    return make_house(tmp_path / "forge", base)


def left_over(house: House) -> list[Path]:
    staging = house.workspace.home / "staging"
    return [*house.workspace.folder("export").iterdir(), *staging.iterdir()]


def test_an_export_holds_what_its_result_says(house: House) -> None:
    result = export(ExportRequest(run=house.run.id), house.context)
    artifact = house.workspace.load(result.export_id, "export")
    artifact.verify()
    assert artifact.manifest.parents == [house.run.id]
    assert result.passed
    assert result.parity is not None
    assert (result.parity.argmax_agreement, result.parity.answers) == (1.0, 1.0)
    assert Path(result.gguf).stat().st_size == result.bytes
    assert result.modelfile is not None
    parsed = parse_modelfile(Path(result.modelfile).read_text())
    assert (parsed.gguf_path, parsed.system_prompt) == ("./model.gguf", "You know demo.")
    assert json.loads((artifact.path / "parity.json").read_text())["answers_stopped"] == 1
    assert "| right answers | 100% (the run itself 100%) |" in Path(result.report).read_text()
    assert {path.name for path in artifact.path.iterdir()} == {
        "Modelfile",
        "manifest.json",
        "model.gguf",
        "parity.json",
        "report.md",
        "tokenizer.json",
    }
    assert GGUFReader(result.gguf).fields["general.name"].contents() == "demo"
    assert (result.comparison, result.also) == ([], {})

    assert export(ExportRequest(run=house.run.id), house.context) == result
    smaller = export(ExportRequest(run=house.run.id, quantization="q8_0"), house.context)
    assert smaller.export_id != result.export_id
    assert smaller.bytes < result.bytes
    with pytest.raises(BadInput, match="q3"):
        export(ExportRequest(run=house.run.id, quantization="q3"), house.context)


def test_progress_counts_the_steps(house: House) -> None:
    export(ExportRequest(run=house.run.id, also=["peft"]), house.context)
    steps = [e.payload for e in house.events if e.kind == "progress"]
    assert [step["done"] for step in steps] == sorted(step["done"] for step in steps)
    assert {step["total"] for step in steps} == {5}
    assert steps[-1]["done"] == 5
    assert any(step["message"] == "writing f16: tensor 3/21" for step in steps)


def test_other_forms_are_kept_where_they_are_asked_for(house: House) -> None:
    result = export(
        ExportRequest(run=house.run.id, also=["huggingface", "peft", "gguf_lora"]), house.context
    )
    assert {name: Path(path).name for name, path in result.also.items()} == {
        "gguf_lora": "adapter.gguf",
        "huggingface": "huggingface",
        "peft": "peft",
    }
    folder = Path(result.path)
    assert (folder / "huggingface" / "model.safetensors").is_file()
    assert (folder / "peft" / "adapter_model.safetensors").is_file()
    lora = GGUFReader(str(folder / "adapter.gguf"))
    assert lora.fields["general.type"].contents() == "adapter"
    house.workspace.load(result.export_id, "export").verify()


def test_the_table_holds_every_quantisation(house: House) -> None:
    result = export(
        ExportRequest(run=house.run.id, quantization="q8_0", compare=True), house.context
    )
    assert {row.quantization for row in result.comparison} == set(QUANTIZATIONS)
    sizes = [row.bytes for row in result.comparison]
    assert sizes == sorted(sizes, reverse=True)
    chosen = next(row for row in result.comparison if row.quantization == "q8_0")
    assert result.parity is not None
    assert chosen.argmax_agreement == result.parity.argmax_agreement
    assert chosen.bytes == result.bytes == Path(result.gguf).stat().st_size
    text = Path(result.report).read_text()
    assert "## Size and quality" in text
    assert "| **q8_0** |" in text
    assert not list(Path(result.path).glob("other*"))


def test_an_export_that_differs_is_refused_and_not_kept(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_norm(run: Any, folder: Path, dtype: Any, progress: Any = None) -> Path:
        """The merged model, its last norm turned round."""
        rows = run.rows
        monkeypatch.setattr(
            run,
            "rows",
            lambda name, *span: -rows(name, *span) if "embed" in name else rows(name, *span),
        )
        return merge_adapters_to_base(run, folder, dtype, progress)

    monkeypatch.setattr("forge_mcp.exporting.fuse.merge_adapters_to_base", without_norm)
    with pytest.raises(GateRefused, match="agrees in") as refused:
        export(ExportRequest(run=house.run.id), house.context)
    assert "KL" in refused.value.cause
    assert left_over(house) == []


def test_what_llama_cpp_cannot_check_is_written_and_not_passed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "forge_mcp.exporting.llamacpp.missing", lambda: "xllamacpp is not installed"
    )
    result = export(ExportRequest(run=house.run.id, quantization="q8_0"), house.context)
    assert (result.parity, result.passed) == (None, False)
    assert result.reasons == ["it was not checked: xllamacpp is not installed"]
    assert Path(result.gguf).read_bytes()[:4] == b"GGUF"
    assert "**Not checked**" in Path(result.report).read_text()
    assert "is not checked: xllamacpp is not installed" in house.logs()
    assert not (Path(result.path) / "parity.json").exists()


def test_a_cancelled_export_leaves_nothing(house: House) -> None:
    stop = threading.Event()

    def cancel_late(event: Any) -> None:
        if "answer" in str(event.payload.get("message")):
            stop.set()

    context = SkillContext(
        house.workspace, house.context.settings, "demo", sink=cancel_late, cancel=stop
    )
    with pytest.raises(Cancelled):
        export(ExportRequest(run=house.run.id), context)
    assert left_over(house) == []


def test_a_full_disk_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_mcp.workspace.free_bytes", lambda path: 10_000)
    with pytest.raises(OutOfSpace):
        export(ExportRequest(run=house.run.id), house.context)
    monkeypatch.undo()
    assert left_over(house) == []


def test_a_prompt_that_no_modelfile_holds_is_told_and_exported(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "forge_mcp.pipeline.export.system_prompt", lambda dataset: 'Ends a line """\nso.'
    )
    result = export(ExportRequest(run=house.run.id), house.context)
    assert result.modelfile is None
    assert "No Modelfile was written" in house.logs()
    assert not (Path(result.path) / "Modelfile").exists()
