"""The skill `deploy`: an export becomes the model that answers."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from pydantic import Field

from forge_mcp.errors import ForgeError, GateRefused
from forge_mcp.pipeline.export import (
    GGUF,
    TOKENIZER,
    ExportRequest,
    export,
    load_export,
    system_prompt,
)
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.settings import ServingSettings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, write_file

VERSION = 1
TRIES = 3  # held-out prompts of which one must be answered with any text
PROBE_TOKENS = 32


class DeployRequest(SkillRequest):
    """What to deploy, and where."""

    run_or_export: str = Field(
        description="Id of an export, or of a run (which is exported first with the project's "
        "quantisation)."
    )
    target: Literal["llamacpp", "ollama"] | None = Field(
        default=None,
        description="llamacpp: the embedded runtime; ollama: a running Ollama server. Default: "
        "the project's.",
    )


class DeployResult(SkillResult):
    """What is active now."""

    deployment_id: str
    model: str = Field(description="Its name, for 'query --model', 'activate' and Ollama.")
    target: Literal["llamacpp", "ollama"]
    previous: str | None = Field(description="The model that `rollback` returns to.")
    seconds: float


@skill(
    title="Deploy a model",
    positional=("run_or_export",),
    destructive=True,
    aliases=("deploy_model",),
    examples=(
        "forge-mcp deploy run-flask-3f9a",
        "forge-mcp deploy export-flask-8c21 --target ollama",
    ),
)
def deploy(request: DeployRequest, context: SkillContext) -> DeployResult:
    """Make a run the model that `query` asks, after it has generated text where it will run.

    Use this when `evaluate` has passed a run. A run that was not compared with the base and with
    the model that is deployed now, or did not pass, is refused. The file is loaded (or created in
    Ollama) and asked something first; only then does the project's active model change, in one
    step. The model that was active stays, and `rollback` returns to it.
    """
    started = time.perf_counter()
    workspace = context.workspace
    serving = context.settings.serving
    target = request.target or serving.target
    asked = workspace.load(request.run_or_export, "run", "export")
    run = asked if asked.manifest.kind == "run" else _parent_run(workspace, asked)
    report = _require_passing_report(workspace, run)
    if asked.manifest.kind == "run":
        exported = export(ExportRequest(run=run.id), context)
        asked = workspace.load(exported.export_id, "export")
    artifact = load_export(workspace, asked.id)

    inputs_hash = hash_inputs(
        {
            "export": artifact.manifest.inputs_hash,
            "target": target,
            "host": serving.ollama_host if target == "ollama" else None,
            "version": VERSION,
        }
    )
    deployment_id = workspace.new_id("deployment", context.project, inputs_hash)
    model = deployment_id.removeprefix("deploy-")
    prompt = system_prompt(_dataset(workspace, run))
    context.log(f"Loading {model} into {target}.")
    _try_out(artifact, run, model, target, prompt, context)

    if workspace.find("deployment", context.project, inputs_hash) is None:
        with workspace.stage("deployment", context.project) as staged:
            settings = {"system_prompt": prompt, "serving": serving.model_dump()}
            facts = {"model": model, "target": target, "export": artifact.id, "run": run.id}
            write_file(staged.path / "deployment.json", _json(facts | settings))
            staged.commit(
                id=deployment_id,
                inputs_hash=inputs_hash,
                parents=[artifact.id, report.id],
                repository=artifact.manifest.repository,
                settings=settings,
                result=facts,
            )
    from forge_mcp.serving.registry import register

    standing = register(
        workspace,
        id=deployment_id,
        project=context.project,
        model=model,
        target=target,
        run=run.id,
        export=artifact.id,
    )
    return DeployResult(
        deployment_id=deployment_id,
        model=model,
        target=target,
        previous=standing.previous.model if standing.previous else None,
        seconds=round(time.perf_counter() - started, 3),
    )


def _try_out(
    artifact: Artifact,
    run: Artifact,
    model: str,
    target: Literal["llamacpp", "ollama"],
    prompt: str,
    context: SkillContext,
) -> None:
    """Load the model where it will run and let it say something.

    Raises:
        Unavailable, CorruptArtifact, ForgeError: it does not load, or says nothing. What was made
        in Ollama for it is removed again.
    """
    from forge_mcp.serving.chat import Deployed, Sampling, open_chat

    serving = context.settings.serving
    deployed = Deployed(model, target, artifact.file(GGUF), artifact.file(TOKENIZER))
    created = target == "ollama" and _create_in_ollama(deployed, prompt, serving, context)
    try:
        chat = open_chat(deployed, serving)
        sampling = Sampling(0.0, 1, 1.0, min(PROBE_TOKENS, serving.num_predict))
        for messages in _probes(context.workspace, run):
            context.check()
            if chat.count_tokens(messages) + sampling.num_predict > serving.num_ctx:
                continue
            if chat.chat(messages, sampling).text.strip():
                return
        raise ForgeError(
            f"{model} loads, but answers nothing.",
            cause=f"{TRIES} held-out questions gave no text",
            next_step="What was active stays active. Train longer, or on more examples.",
        )
    except BaseException:
        if created:
            from forge_mcp.serving.ollama import delete_ollama_model

            delete_ollama_model(model, host=serving.ollama_host)
        raise


def _create_in_ollama(
    deployed: Any, prompt: str, serving: ServingSettings, context: SkillContext
) -> bool:
    """Whether the model is new in Ollama."""
    from forge_mcp.pipeline.export import MODELFILE_SETTINGS
    from forge_mcp.serving.ollama import create_ollama_model, list_ollama_models

    known = {name.removesuffix(":latest") for name in list_ollama_models(serving.ollama_host)}
    create_ollama_model(
        deployed.model,
        deployed.gguf,
        prompt,
        serving.model_dump(include=MODELFILE_SETTINGS),
        host=serving.ollama_host,
        progress=context.log,
    )
    return deployed.model not in known


def _probes(workspace: Workspace, run: Artifact) -> list[Any]:
    """Prompts of held-out rows, whatever split has some."""
    from forge_mcp.schemas.raft_examples import ChatRow

    dataset = _dataset(workspace, run)
    probes: list[Any] = []
    for name in ("test.jsonl", "valid.jsonl", "train.jsonl"):
        rows = sorted(dataset.rows(name), key=lambda row: len(str(row)))
        probes += [ChatRow.model_validate(row).messages[:-1] for row in rows[:TRIES]]
    return probes[:TRIES]


def _require_passing_report(workspace: Workspace, run: Artifact) -> Artifact:
    """The newest report that compares a run with what is deployed now.

    Raises:
        GateRefused: there is none, or it did not pass.
    """
    from forge_mcp.serving.registry import standing

    active = standing(workspace, run.manifest.project).active
    beside = active.run if active is not None and active.run != run.id else None
    for report in workspace.artifacts("report", run.manifest.project):
        if report.manifest.parents[:1] != [run.id]:
            continue
        passed = report.manifest.result.get("passed") is True
        if passed and beside is not None and _compared_with(report) != beside:
            continue
        if passed:
            return report
        raise GateRefused(
            f"{run.id} was judged and did not pass.",
            cause="; ".join(report.manifest.result.get("reasons", [])) or f"see {report.id}",
            next_step="What is deployed stays. Improve the data or train longer, then "
            "'forge-mcp evaluate' the new run.",
        )
    raise GateRefused(
        f"{run.id} was not compared with the base or with what is deployed.",
        cause=f"no report holds it against {beside}, which is deployed"
        if beside
        else "no report names it",
        next_step=f"Run 'forge-mcp evaluate {run.id}' first.",
    )


def _compared_with(report: Artifact) -> str | None:
    """The deployed run that an evaluation compared with, where there was one."""
    report.verify("report.json")
    facts: dict[str, Any] = json.loads(report.file("report.json").read_text("utf-8"))
    return facts.get("deployed_model")


def _parent_run(workspace: Workspace, artifact: Artifact) -> Artifact:
    from forge_mcp.serving.lineage import ancestor

    return ancestor(workspace, artifact, "run")


def _dataset(workspace: Workspace, run: Artifact) -> Artifact:
    from forge_mcp.serving.lineage import ancestor

    return ancestor(workspace, run, "dataset")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
