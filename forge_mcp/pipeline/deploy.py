"""The skill `deploy`: an export becomes the model that answers."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from forge_mcp.errors import Busy, GateRefused, NotFound
from forge_mcp.pipeline.export import GGUF, ExportRequest, export, system_prompt
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.pipeline.tryout import (
    TRIES,
    Candidate,
    Target,
    Tried,
    deploying,
    end_other_servers,
    require_sound,
    tried_out,
)
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, write_file, write_jsonl

if TYPE_CHECKING:
    from forge_mcp.serving.registry import Origin, Standing

VERSION = 2
DEPLOYMENT = "deployment.json"
TRYOUT = "tryout.jsonl"


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
    """Make a run the model that `query` asks, after it has answered where it will run.

    Use this when `evaluate` has passed a run. A run that was not compared with the base and with
    the model that is deployed now, or did not pass, is refused, and so is a file that was never
    checked against its run. The file is loaded (or created in Ollama) and asked something first;
    only then does the project's active model change, in one step. The model that was active stays,
    and `rollback` returns to it. Where anything fails on the way, nothing has changed.
    """
    started = time.perf_counter()
    workspace = context.workspace
    asked = workspace.load(request.run_or_export, "run", "export")
    run = asked if asked.manifest.kind == "run" else _parent(workspace, asked, "run")
    _require_passing_report(workspace, run, _standing(context))  # before a long export
    if asked.manifest.kind == "run":
        exported = export(ExportRequest(run=run.id), context)
        asked = workspace.load(exported.export_id, "export")
    target = request.target or context.settings.serving.target
    with deploying(context):
        standing, deployment_id = _deploy(asked, run, target, context)
    end_other_servers(context)
    return DeployResult(
        deployment_id=deployment_id,
        model=model_of(deployment_id),
        target=target,
        previous=standing.previous.model if standing.previous else None,
        seconds=round(time.perf_counter() - started, 3),
    )


def model_of(deployment_id: str) -> str:
    """The name of a deployment's model: lower case letters, digits and dashes, as Ollama wants."""
    return deployment_id.removeprefix("deploy-")


def _deploy(
    artifact: Artifact, run: Artifact, target: Target, context: SkillContext
) -> tuple[Standing, str]:
    """Check, try out, keep and activate an export; nothing is left of a failure."""
    workspace, serving = context.workspace, context.settings.serving
    require_sound(artifact, context)
    inputs_hash = hash_inputs(
        {
            "export": artifact.manifest.inputs_hash,
            "target": target,
            "host": serving.ollama_host if target == "ollama" else None,
            "version": VERSION,
        }
    )
    deployment_id = workspace.new_id("deployment", context.project, inputs_hash)
    prompt = system_prompt(_parent(workspace, run, "dataset"))
    candidate = Candidate(
        model_of(deployment_id), target, artifact, prompt, _questions(workspace, run)
    )
    context.log(f"Loading {candidate.model} into {target}.")
    with tried_out(candidate, context) as tried:
        while True:
            seen = _standing(context)
            report = _require_passing_report(workspace, run, seen)
            kept = workspace.find("deployment", context.project, inputs_hash)
            if kept is None:
                settings = {"system_prompt": prompt, "serving": serving.model_dump()}
                _keep(deployment_id, inputs_hash, candidate, run, report, settings, tried, context)
            try:
                standing = _register(deployment_id, candidate, run, report, seen, context)
            except Busy:
                if _standing(context).active == seen.active:
                    raise
                continue  # somebody activated or rolled back: is the run better than that one too?
            return standing, deployment_id


def _keep(
    deployment_id: str,
    inputs_hash: str,
    candidate: Candidate,
    run: Artifact,
    report: Artifact,
    settings: dict[str, Any],
    tried: list[Tried],
    context: SkillContext,
) -> None:
    """The deployment's own folder: what it is, and what it answered when it was tried out."""
    facts = {
        "model": candidate.model,
        "target": candidate.target,
        "export": candidate.export.id,
        "run": run.id,
    }
    with context.workspace.stage("deployment", context.project) as staged:
        write_file(staged.path / DEPLOYMENT, _json(facts | settings))
        write_jsonl(staged.path / TRYOUT, tried)
        staged.commit(
            id=deployment_id,
            inputs_hash=inputs_hash,
            parents=[candidate.export.id, report.id],
            repository=candidate.export.manifest.repository,
            settings=settings,
            result=facts,
        )


def _register(
    deployment_id: str,
    candidate: Candidate,
    run: Artifact,
    report: Artifact,
    seen: Standing,
    context: SkillContext,
) -> Standing:
    from forge_mcp.serving.registry import Actor, register

    return register(
        context.workspace,
        id=deployment_id,
        project=context.project,
        model=candidate.model,
        target=candidate.target,
        run=run.id,
        export=candidate.export.id,
        origin=_origin(context.workspace, candidate.export, run, report),
        by=Actor.here(context.face),
        seen=seen,
        reason=f"{report.id} passed",
    )


def _origin(workspace: Workspace, artifact: Artifact, run: Artifact, report: Artifact) -> Origin:
    from forge_mcp.serving.registry import Origin

    repository = artifact.manifest.repository
    try:
        corpus = _parent(workspace, run, "corpus").id
    except NotFound:  # a dataset that was written by hand
        corpus = None
    return Origin(
        corpus=corpus,
        dataset=_parent(workspace, run, "dataset").id,
        report=report.id,
        revision=repository.revision if repository else None,
        dirty=repository.dirty if repository else None,
        sha256=artifact.manifest.checksums[GGUF],
        quantization=artifact.manifest.result.get("quantization"),
        bytes=artifact.file(GGUF).stat().st_size,
    )


def _questions(workspace: Workspace, run: Artifact) -> list[list[Message]]:
    """Prompts of held-out rows, the shortest ones, of whatever split has some."""
    from forge_mcp.schemas.raft_examples import ChatRow

    dataset = _parent(workspace, run, "dataset")
    questions: list[list[Message]] = []
    for name in ("test.jsonl", "valid.jsonl", "train.jsonl"):
        rows = sorted(dataset.rows(name), key=lambda row: len(str(row)))
        questions += [ChatRow.model_validate(row).messages[:-1] for row in rows[:TRIES]]
    return questions[:TRIES]


def _standing(context: SkillContext) -> Standing:
    from forge_mcp.serving.registry import standing

    return standing(context.workspace, context.project)


def _require_passing_report(workspace: Workspace, run: Artifact, now: Standing) -> Artifact:
    """The newest report that compares a run with what is deployed `now`.

    Raises:
        GateRefused: there is none, or it did not pass.
    """
    active = now.active
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
        next_step="Nothing can be compared with an imported model: take it back first with "
        "'forge-mcp rollback'."
        if active is not None and active.origin.imported
        else f"Run 'forge-mcp evaluate {run.id}' first.",
    )


def _compared_with(report: Artifact) -> str | None:
    """The deployed run that an evaluation compared with, where there was one."""
    report.verify("report.json")
    facts: dict[str, Any] = json.loads(report.file("report.json").read_text("utf-8"))
    return facts.get("deployed_model")


def _parent(
    workspace: Workspace, artifact: Artifact, kind: Literal["run", "dataset", "corpus"]
) -> Artifact:
    from forge_mcp.serving.lineage import ancestor

    return ancestor(workspace, artifact, kind)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
