"""What the tests of deployments share: a house with two exports, and ways to spoil one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from serving_house import ANSWER, House, make_house, scripted_model

from forge_mcp.pipeline.deploy import DeployRequest, DeployResult, deploy
from forge_mcp.pipeline.export import ExportRequest, ExportResult, export
from forge_mcp.pipeline.models import ModelsRequest, ModelsResult, models
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace, hash_file


def make_exports(folder: Path) -> Path:
    """A workspace with a run and two exports of it."""
    house = make_house(folder / "forge", scripted_model(folder / "m", ANSWER))
    for quantization in ("f16", "q8_0"):
        exported(house, quantization)
    return house.workspace.home


def copied(exports: Path, folder: Path) -> House:
    """A copy of it for one test."""
    shutil.copytree(exports, folder / "forge")
    return open_house(folder / "forge")


def open_house(home: Path) -> House:
    """A workspace that `make_house` made, wherever it stands now."""
    workspace, events = Workspace(home), list[Event]()
    sections = {
        "exporting": {"quantization": "f16"},
        "serving": {"num_ctx": 512, "num_predict": 64, "threads": 1},
    }
    context = SkillContext(workspace, load_settings(None, sections), "demo", sink=events.append)
    return House(context, workspace.artifacts("run")[0], events)


def exported(house: House, quantization: str = "f16") -> ExportResult:
    return export(ExportRequest(run=house.run.id, quantization=quantization), house.context)


def deployed(house: House, quantization: str = "f16") -> DeployResult:
    found = exported(house, quantization)
    return deploy(DeployRequest(run_or_export=found.export_id), house.context)


def listed(house: House) -> ModelsResult:
    return models(ModelsRequest(), house.context)


def spoil(house: House, id: str, name: str, content: bytes) -> None:
    """Another content of a file, and a manifest that agrees with it."""
    artifact = house.workspace.load(id)
    (artifact.path / name).write_bytes(content)
    checksums = artifact.manifest.checksums | {name: hash_file(artifact.path / name)}
    manifest = artifact.manifest.model_copy(update={"checksums": checksums})
    (artifact.path / "manifest.json").write_text(manifest.model_dump_json())


def spoil_result(house: House, id: str, **changed: Any) -> None:
    artifact = house.workspace.load(id)
    result = artifact.manifest.result | changed
    manifest = artifact.manifest.model_copy(update={"result": result})
    (artifact.path / "manifest.json").write_text(manifest.model_dump_json())


def nothing_was_deployed(house: House) -> bool:
    staging = house.workspace.home / "staging"
    return (
        listed(house).active is None
        and not listed(house).models
        and not list(house.workspace.folder("deployment").iterdir())
        and not list(staging.iterdir())
    )
