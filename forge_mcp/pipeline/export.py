"""The skill `export`: a run becomes a GGUF file that was checked against it."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forge_mcp.errors import BadInput, GateRefused, UnsupportedModel
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.schemas.base import Schema
from forge_mcp.settings import ExportingSettings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs

if TYPE_CHECKING:
    from forge_mcp.exporting.parity import HeldOut
    from forge_mcp.judging.heldout import Case
    from forge_mcp.judging.results import ScoredAnswer
    from forge_mcp.training.bases import Base

GGUF = "model.gguf"
MODELFILE = "Modelfile"
PARITY = "parity.json"
TOKENIZER = "tokenizer.json"
MODELFILE_SETTINGS = {"temperature", "top_k", "top_p", "num_ctx", "num_predict"}


class ExportRequest(SkillRequest):
    """Which run to export, and how small."""

    run: str = Field(description="Id of a run, e.g. 'run-flask-3f9a'.")
    quantization: str | None = Field(
        default=None,
        description="f32, f16 (exact, largest), q8_0, q6_k, q5_k_m or q4_k_m (smallest, "
        "recommended). Default: the project's.",
    )


class ParitySummary(Schema):
    """How near the file is to the run, on held-out rows."""

    argmax_agreement: float = Field(
        description="Share of tokens whose most likely successor agrees."
    )
    mean_kl: float = Field(description="Mean KL divergence of the next token, in nats.")
    answers: float | None = Field(
        description="Share of held-out questions that the file itself answers right; null where "
        "exporting.parity_answers is 0."
    )


class ExportResult(SkillResult):
    """A file that passed the parity gate. One that does not is refused and not kept."""

    export_id: str
    path: str
    gguf: str
    bytes: int
    quantization: str
    modelfile: str | None = Field(
        description="For 'ollama create'; null where the system prompt cannot stand in one "
        "(deploy works all the same)."
    )
    parity: ParitySummary
    passed: bool
    reasons: list[str]
    seconds: float


@skill(
    title="Export a model",
    positional=("run",),
    long=True,
    loads_model=True,
    aliases=("export_model",),
    examples=(
        "forge-mcp export run-flask-3f9a",
        "forge-mcp export run-flask-3f9a --quantization f16",
    ),
)
def export(request: ExportRequest, context: SkillContext) -> ExportResult:
    """Write a run as one GGUF file (and a Modelfile) that llama.cpp and Ollama load.

    Use this when a run was judged and shall be deployed or given away. Adapters are merged into
    the base, the result is quantised, and the file is compared with the run itself on held-out
    rows: tokens, rendered chats, next-token distributions, and whether it stops. A file that
    differs by more than its quantisation allows is refused and not kept. Asked again for the same
    run and settings, it returns the finished export. Next: `deploy EXPORT`.
    """
    started = time.perf_counter()
    workspace = context.workspace
    run = workspace.load(request.run, "run")
    from forge_mcp.exporting.gguf import GGUF_VERSION
    from forge_mcp.exporting.parity import PARITY_VERSION
    from forge_mcp.exporting.quantize import check_quantization
    from forge_mcp.serving.lineage import ancestor

    quantization = request.quantization or context.settings.exporting.quantization
    check_quantization(quantization)
    dataset = ancestor(workspace, run, "dataset")
    prompt = system_prompt(dataset)
    serving = context.settings.serving
    sampling = serving.model_dump(include=MODELFILE_SETTINGS)
    settings = {
        "exporting": context.settings.exporting.model_dump() | {"quantization": quantization},
        "serving": sampling,
        "answer_tokens": context.settings.judging.max_tokens,
        "seed": context.settings.judging.seed,
    }
    inputs_hash = hash_inputs(
        {
            "run": run.manifest.inputs_hash,
            "settings": settings,
            "system_prompt": prompt,
            "versions": [GGUF_VERSION, PARITY_VERSION],
        }
    )
    found = workspace.find("export", context.project, inputs_hash)
    if found is not None:
        context.log(f"{found.id} was already exported from the same run and settings.")
        return ExportResult.model_validate(found.manifest.result)

    export_id = workspace.new_id("export", context.project, inputs_hash)
    with workspace.stage("export", context.project) as staged:
        gguf = staged.path / GGUF
        parity = _write_and_check(run, dataset, staged.path, quantization, context)
        if not parity["passed"]:
            raise GateRefused(
                f"The {quantization} export of {run.id} is not the model that was trained.",
                cause="; ".join(parity["reasons"])
                + f" (agreement {parity['argmax_agreement']:.1%}, KL {parity['mean_kl']:.4f} on "
                f"{parity['tokens_compared']} tokens)",
                next_step="Nothing was kept or deployed. Where weights differ, export with less "
                "quantisation (--quantization q6_k, q8_0 or f16); where tokens or chats differ, "
                "train on another base.",
            )
        (staged.path / PARITY).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
        target = workspace.folder("export") / export_id
        result = ExportResult(
            export_id=export_id,
            path=str(target),
            gguf=str(target / GGUF),
            bytes=gguf.stat().st_size,
            quantization=quantization,
            modelfile=None,
            parity=ParitySummary(
                argmax_agreement=parity["argmax_agreement"],
                mean_kl=parity["mean_kl"],
                answers=parity["answers"],
            ),
            passed=True,
            reasons=[],
            seconds=0.0,
        )
        text = _modelfile(export_id.removeprefix("export-"), prompt, sampling, context)
        if text is not None:
            (staged.path / MODELFILE).write_text(text, encoding="utf-8")
            result.modelfile = str(target / MODELFILE)
        result.seconds = round(time.perf_counter() - started, 3)
        artifact = staged.commit(
            id=export_id,
            inputs_hash=inputs_hash,
            parents=[run.id],
            repository=run.manifest.repository,
            settings=settings,
            result=result.model_dump(),
        )
    return ExportResult.model_validate(artifact.manifest.result)


def _write_and_check(
    run: Artifact, dataset: Artifact, folder: Any, quantization: str, context: SkillContext
) -> dict[str, Any]:
    """Write model.gguf and tokenizer.json into `folder`; returns what parity.json holds."""
    from forge_mcp.exporting.fuse import merge_adapters_to_base
    from forge_mcp.exporting.gguf import convert_to_gguf
    from forge_mcp.exporting.parity import check_parity
    from forge_mcp.judging.answers import Repository, RuntimeBackend, score_answers
    from forge_mcp.schemas.code_blocks import CodeBlock
    from forge_mcp.serving.llamacpp import LlamaCppChat
    from forge_mcp.training.run import load_run

    settings, serving = context.settings.exporting, context.settings.serving
    held_out, cases = _held_out(dataset, settings, context)
    repository = Repository(map(CodeBlock.model_validate, dataset.rows("documents.jsonl")))
    context.progress(0, 3, "merging adapters into the base")
    loaded = load_run(run)
    fused = merge_adapters_to_base(
        loaded, folder / "fused", "float32" if quantization == "f32" else "float16"
    )
    context.progress(1, 3, f"writing {quantization}")
    gguf = convert_to_gguf(
        fused,
        folder / GGUF,
        quantization,
        name=context.project,
        threads=serving.threads,
        progress=lambda done, total: context.check(),
    )
    shutil.copyfile(fused / TOKENIZER, folder / TOKENIZER)
    shutil.rmtree(fused)
    context.progress(2, 3, "checking the file against the run")
    runtime = LlamaCppChat(gguf, num_ctx=serving.num_ctx, threads=serving.threads)

    def score(places: Sequence[int]) -> list[ScoredAnswer]:
        return score_answers(
            RuntimeBackend(runtime),
            [cases[place] for place in places],
            repository,
            context.settings.judging.max_tokens,
            lambda done, of: context.progress(2, 3, f"answer {done}/{of}"),
        )

    try:
        parity = check_parity(
            loaded.model,
            loaded.tokenizer,
            gguf,
            runtime,
            held_out,
            settings,
            score,
            quantization=quantization,
            context=serving.num_ctx,
            threads=serving.threads,
            progress=lambda message: context.progress(2, 3, message),
        )
    finally:
        runtime.close()
    if parity.answers_asked and not parity.answers_stopped:
        context.log("No generated answer ended by itself: the model rambles.", warning=True)
    context.progress(3, 3, "done")
    return parity.as_dict()


def _held_out(
    dataset: Artifact, settings: ExportingSettings, context: SkillContext
) -> tuple[HeldOut, list[Case]]:
    """A sample of rows that the run was not trained on: the test split, else the valid split."""
    from forge_mcp.exporting.parity import POSITIONS_PER_ROW, HeldOut
    from forge_mcp.judging.heldout import held_out, sample

    size = max(settings.parity_answers, math.ceil(2 * settings.parity_tokens / POSITIONS_PER_ROW))
    seed = context.settings.judging.seed
    split = "test" if dataset.file("test.jsonl").stat().st_size else "valid"
    if split == "valid":
        context.log("The test split is empty: the export is checked on the valid split.")
        cases = held_out(dataset, "valid").open_book
    else:
        cases = held_out(dataset, "test").open_book
    chosen = sample(cases, size, seed)
    return HeldOut(split, [case.row.messages for case in chosen]), chosen


def system_prompt(dataset: Artifact) -> str:
    """The system prompt that the rows of a dataset bear, and so the one its runs know."""
    from forge_mcp.schemas.raft_examples import ChatRow

    for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
        for row in dataset.rows(name):
            first = ChatRow.model_validate(row).messages[0]
            if first.role == "system":
                return first.content
    raise BadInput(
        f"{dataset.id} has no row with a system prompt.",
        next_step="Make it anew: forge-mcp synthesize CORPUS.",
    )


def _modelfile(
    name: str, prompt: str, sampling: dict[str, Any], context: SkillContext
) -> str | None:
    from forge_mcp.exporting.modelfile import create_ollama_modelfile

    try:
        return create_ollama_modelfile(name, f"./{GGUF}", prompt, sampling)
    except BadInput as error:
        context.log(f"No Modelfile was written. {error.message} {error.cause}", warning=True)
        return None


def require_exportable(base: Base) -> None:
    """Say before the training what `export` would say after it.

    Raises:
        UnsupportedModel: the GGUF writer does not know the base's architecture, or GGUF cannot
            hold its tokenizer.
    """
    from forge_mcp.exporting.gguf import ARCHITECTURES
    from forge_mcp.exporting.tokenizer import read_vocabulary

    kind = base.config["model_type"]
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(
            f"The base model '{base.name}' cannot be written as GGUF.",
            cause=f"its architecture is {kind!r}; known are {', '.join(ARCHITECTURES)}",
            next_step="Train on another base where the model shall be exported or deployed.",
        )
    try:
        read_vocabulary(base.path, base.config.get("vocab_size", 0))
    except UnsupportedModel:
        raise
    except Exception as error:  # a damaged tokenizer.json can fail anywhere in it
        raise UnsupportedModel(
            f"The tokenizer of {base.name} cannot be read.",
            cause=f"{type(error).__name__}: {error}",
            next_step=f"Check the files in {base.path}, or fetch the model again.",
        ) from error


def load_export(workspace: Workspace, export_id: str) -> Artifact:
    """An export whose GGUF is what was written.

    Raises:
        NotFound, CorruptArtifact: it is not there, or its file was changed.
    """
    artifact = workspace.load(export_id, "export")
    artifact.verify(GGUF)
    return artifact
