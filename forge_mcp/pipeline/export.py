"""The skill `export`: a run becomes a GGUF file that was checked against it."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from forge_mcp.errors import BadInput, GateRefused
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.schemas.base import Schema
from forge_mcp.settings import ExportingSettings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, write_file

if TYPE_CHECKING:
    from forge_mcp.exporting.parity import Parity
    from forge_mcp.exporting.reference import HeldOut, Reference
    from forge_mcp.exporting.report import Compared
    from forge_mcp.judging.heldout import Case
    from forge_mcp.judging.results import ScoredAnswer
    from forge_mcp.training.bases import Base
    from forge_mcp.training.merging import MergedRun

GGUF = "model.gguf"
MODELFILE = "Modelfile"
PARITY = "parity.json"
REPORT = "report.md"
TOKENIZER = "tokenizer.json"
HUGGINGFACE = "huggingface"
PEFT = "peft"
GGUF_LORA = "adapter.gguf"
MODELFILE_SETTINGS = {
    "temperature",
    "top_k",
    "top_p",
    "repeat_penalty",
    "seed",
    "stop",
    "num_ctx",
    "num_predict",
}
Also = Literal["huggingface", "peft", "gguf_lora"]
KEPT_AS: dict[Also, str] = {"huggingface": HUGGINGFACE, "peft": PEFT, "gguf_lora": GGUF_LORA}


class ExportRequest(SkillRequest):
    """Which run to export, and how small."""

    run: str = Field(description="Id of a run, e.g. 'run-flask-3f9a'.")
    quantization: str | None = Field(
        default=None,
        description="f32, f16 (exact, largest), bf16, q8_0, q6_k, q5_k_m or q4_k_m (smallest, "
        "recommended). Default: the project's.",
    )
    also: list[Also] = Field(
        default_factory=list,
        description="Keep beside the GGUF: huggingface (the merged model as a folder), peft (the "
        "adapters for the untouched base), gguf_lora (the same as a GGUF adapter).",
    )
    compare: bool = Field(
        default=False,
        description="Also write and measure every other quantisation, and keep the table of sizes "
        "and quality.",
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


class QuantizationRow(Schema):
    """One quantisation of the run, measured; see ParitySummary."""

    quantization: str
    bytes: int
    argmax_agreement: float
    mean_kl: float
    answers: float | None
    passed: bool


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
    parity: ParitySummary | None = Field(
        description="Null where the file could not be checked; then it cannot be deployed."
    )
    report: str = Field(description="report.md: what was compared, and the table of quantisations.")
    comparison: list[QuantizationRow] = Field(
        default_factory=list, description="Every quantisation, largest first, where asked for."
    )
    also: dict[str, str] = Field(default_factory=dict, description="What was kept beside it.")
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
        "forge-mcp export run-flask-3f9a --quantization f16 --also huggingface --also peft",
        "forge-mcp export run-flask-3f9a --compare",
    ),
)
def export(request: ExportRequest, context: SkillContext) -> ExportResult:
    """Write a run as one GGUF file (and a Modelfile) that llama.cpp and Ollama load.

    Use this when a run was judged and shall be deployed or given away. Adapters are merged into
    the base, the result is quantised, and the file is compared with the run itself on held-out
    rows: tokens, rendered chats, next-token distributions, answers, and whether it stops. A file
    that differs by more than its quantisation allows is refused and not kept. Asked again for the
    same run and settings, it returns the finished export. Next: `deploy EXPORT`.
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
    sampling = context.settings.serving.model_dump(include=MODELFILE_SETTINGS)
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
            "also": sorted(request.also),
            "compare": request.compare,
            "versions": [GGUF_VERSION, PARITY_VERSION],
        }
    )
    found = workspace.find("export", context.project, inputs_hash)
    if found is not None:
        context.log(f"{found.id} was already exported from the same run and settings.")
        return ExportResult.model_validate(found.manifest.result)

    export_id = workspace.new_id("export", context.project, inputs_hash)
    with workspace.stage("export", context.project) as staged:
        folder = staged.path
        done = _Exporter(run, dataset, folder, quantization, context).make(
            set(request.also), compare=request.compare
        )
        text = _modelfile(export_id.removeprefix("export-"), prompt, sampling, context)
        if text is not None:
            write_file(folder / MODELFILE, text)
        target = workspace.folder("export") / export_id
        result = ExportResult(
            export_id=export_id,
            path=str(target),
            gguf=str(target / GGUF),
            bytes=(folder / GGUF).stat().st_size,
            quantization=quantization,
            modelfile=str(target / MODELFILE) if text is not None else None,
            parity=done.summary(),
            report=str(target / REPORT),
            comparison=done.rows(),
            also={name: str(target / KEPT_AS[name]) for name in sorted(set(request.also))},
            passed=done.unchecked is None,
            reasons=[] if done.unchecked is None else [f"it was not checked: {done.unchecked}"],
            seconds=round(time.perf_counter() - started, 3),
        )
        artifact = staged.commit(
            id=export_id,
            inputs_hash=inputs_hash,
            parents=[run.id],
            repository=run.manifest.repository,
            settings=settings,
            result=result.model_dump(),
        )
    return ExportResult.model_validate(artifact.manifest.result)


class _Exporter:
    """One export, step by step, into a staged folder.

    `file` and `others` are what was measured; `unchecked` why nothing could be.
    """

    def __init__(
        self,
        run: Artifact,
        dataset: Artifact,
        folder: Path,
        quantization: str,
        context: SkillContext,
    ) -> None:
        from forge_mcp.exporting.llamacpp import missing

        self._run, self._dataset, self._folder = run, dataset, folder
        self._quantization, self._context = quantization, context
        self._cases: list[Case] = []
        self._step, self._steps, self._now = 0, 0, ""
        self.unchecked = missing()
        self.file: Compared | None = None
        self.others: list[Compared] = []

    def make(self, also: set[Also], *, compare: bool) -> _Exporter:
        """Write all files.

        Raises:
            GateRefused: the file is not the model that was trained.
        """
        from forge_mcp.exporting.quantize import QUANTIZATIONS
        from forge_mcp.exporting.report import export_report
        from forge_mcp.training.merging import open_merged

        measured = 0 if self.unchecked else len(QUANTIZATIONS) if compare else 1
        self._steps = 2 + 2 * measured + len(also - {"huggingface"})
        merged = open_merged(self._run)
        reference = self._measure_run(merged) if measured else None
        fused = self._fuse(merged)
        shutil.copyfile(fused / TOKENIZER, self._folder / TOKENIZER)
        self._convert(fused, GGUF, self._quantization)
        if reference is not None:
            self.file = self._check(reference, GGUF, self._quantization)
            self._require_passed(self.file.parity)
            for quantization in QUANTIZATIONS if compare else ():
                if quantization != self._quantization:
                    self._convert(fused, "other.gguf", quantization)
                    self.others.append(self._check(reference, "other.gguf", quantization))
                    (self._folder / "other.gguf").unlink()
            (self._folder / "logits.f32").unlink()
            write_file(self._folder / PARITY, _json(self.file.parity.as_dict()))
        else:
            self._context.log(f"The file is not checked: {self.unchecked}.", warning=True)
        write_file(
            self._folder / REPORT,
            export_report(
                f"{self._quantization} of {self._run.id}", self.file, self.others, self.unchecked
            ),
        )
        if "huggingface" not in also:
            shutil.rmtree(fused)
        self._write_adapters(merged, also)
        return self

    def summary(self) -> ParitySummary | None:
        """Of the exported file."""
        return _summary(self.file.parity) if self.file else None

    def rows(self) -> list[QuantizationRow]:
        """Every quantisation, largest first; none where no others were asked for."""
        if self.file is None or not self.others:
            return []
        return [
            QuantizationRow(
                **_summary(one.parity).model_dump(),
                quantization=one.parity.quantization,
                bytes=one.bytes,
                passed=one.parity.passed,
            )
            for one in sorted([self.file, *self.others], key=lambda one: -one.bytes)
        ]

    def _measure_run(self, merged: MergedRun) -> Reference:
        """What the run itself computes; it is unloaded again."""
        from forge_mcp.exporting.reference import measure_run
        from forge_mcp.exporting.tokenizer import read_vocabulary
        from forge_mcp.judging.answers import MlxBackend
        from forge_mcp.machine import mlx
        from forge_mcp.training.run import load_run

        context, settings = self._context, self._context.settings
        held_out, self._cases = _held_out(self._dataset, settings.exporting, context)
        self._begin("reading the run")
        loaded = load_run(self._run)
        reference = measure_run(
            loaded.model,
            loaded.tokenizer,
            held_out,
            self._folder / "logits.f32",
            positions=settings.exporting.parity_tokens,
            context=settings.serving.num_ctx,
            comparable=read_vocabulary(merged.base_path, merged.config["vocab_size"]).comparable,
            answer=partial(
                self._answers,
                MlxBackend(loaded.model, loaded.tokenizer, settings.serving.num_ctx),
            ),
            progress=self._say,
        )
        del loaded
        mlx().clear_cache()
        return reference

    def _fuse(self, merged: MergedRun) -> Path:
        from forge_mcp.exporting.fuse import merge_adapters_to_base

        self._begin("merging adapters into the base")
        dtype: Literal["float16", "float32"] = (
            "float32" if self._quantization == "f32" else "float16"
        )
        return merge_adapters_to_base(
            merged, self._folder / HUGGINGFACE, dtype, progress=self._tick
        )

    def _convert(self, fused: Path, name: str, quantization: str) -> None:
        from forge_mcp.exporting.gguf import convert_to_gguf

        self._begin(f"writing {quantization}")
        convert_to_gguf(
            fused,
            self._folder / name,
            quantization,
            name=self._context.project,
            threads=self._context.settings.serving.threads,
            progress=self._tick,
            log=self._context.log if name == GGUF else lambda note: None,
        )

    def _check(self, reference: Reference, name: str, quantization: str) -> Compared:
        from forge_mcp.exporting.parity import check_parity
        from forge_mcp.exporting.report import Compared
        from forge_mcp.judging.answers import RuntimeBackend
        from forge_mcp.serving.llamacpp import LlamaCppChat

        self._begin(f"checking {quantization} against the run")
        settings, path = self._context.settings, self._folder / name
        serving = settings.serving
        runtime = LlamaCppChat(path, num_ctx=serving.num_ctx, threads=serving.threads)
        try:
            parity = check_parity(
                reference,
                path,
                runtime,
                settings.exporting,
                partial(self._answers, RuntimeBackend(runtime)),
                quantization=quantization,
                context=serving.num_ctx,
                threads=serving.threads,
                progress=self._say,
            )
        finally:
            runtime.close()
        return Compared(parity, path.stat().st_size, _parameters(self._folder / HUGGINGFACE))

    def _answers(self, backend: Any, places: Sequence[int]) -> list[ScoredAnswer]:
        """Has a model answer the first of some held-out questions, and judges what it says."""
        from forge_mcp.judging.answers import Repository, score_answers
        from forge_mcp.schemas.code_blocks import CodeBlock

        settings = self._context.settings
        cases = [self._cases[place] for place in places[: settings.exporting.parity_answers]]
        blocks = map(CodeBlock.model_validate, self._dataset.rows("documents.jsonl"))
        return score_answers(
            backend,
            cases,
            Repository(blocks),
            settings.judging.max_tokens,
            lambda done, of: self._say(f"answer {done}/{of}"),
        )

    def _require_passed(self, parity: Parity) -> None:
        if not parity.passed:
            raise GateRefused(
                f"The {parity.quantization} export of {self._run.id} is not the model that was "
                "trained.",
                cause="; ".join(parity.reasons)
                + f" (agreement {parity.argmax_agreement:.1%}, KL {parity.mean_kl:.4f} on "
                f"{parity.tokens_compared} tokens)",
                next_step="Nothing was kept or deployed. Where weights differ, export with less "
                "quantisation (--quantization q6_k, q8_0 or f16); where tokens or chats differ, "
                "train on another base.",
            )
        if parity.answers_asked and not parity.answers_stopped:
            self._context.log(
                "No generated answer ended by itself: the model rambles.", warning=True
            )

    def _write_adapters(self, merged: MergedRun, also: set[Also]) -> None:
        from forge_mcp.exporting.gguf_lora import export_gguf_lora
        from forge_mcp.exporting.peft import export_peft

        if "peft" in also:
            self._begin("writing the adapters for PEFT")
            export_peft(merged, self._folder / PEFT)
        if "gguf_lora" in also:
            self._begin("writing the adapters as GGUF")
            export_gguf_lora(merged, self._folder / GGUF_LORA)

    def _begin(self, what: str) -> None:
        """The next step."""
        self._step, self._now = self._step + 1, what
        self._context.progress(self._step, self._steps, what)

    def _say(self, more: str) -> None:
        """What a step is at."""
        self._context.progress(self._step, self._steps, f"{self._now}: {more}")

    def _tick(self, done: int, of: int) -> None:
        self._say(f"tensor {done}/{of}")


def _held_out(
    dataset: Artifact, settings: ExportingSettings, context: SkillContext
) -> tuple[HeldOut, list[Case]]:
    """A sample of rows that the run was not trained on: the test split, else the valid split."""
    from forge_mcp.exporting.reference import POSITIONS_PER_ROW, HeldOut
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


def _summary(parity: Parity) -> ParitySummary:
    return ParitySummary(
        argmax_agreement=parity.argmax_agreement, mean_kl=parity.mean_kl, answers=parity.answers
    )


def _parameters(folder: Path) -> int:
    """Numbers that a fused folder holds."""
    from forge_mcp.exporting.tensors import SafetensorsFolder

    tensors = SafetensorsFolder(folder)
    return sum(math.prod(tensors.shape(name)) for name in tensors.names())


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


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
        UnsupportedModel: GGUF or llama.cpp cannot express the base's architecture, or its
            tokenizer.
        NotFound, CorruptArtifact: a file of the tokenizer is missing or damaged.
    """
    from forge_mcp.exporting.architectures import describe
    from forge_mcp.exporting.tokenizer import read_vocabulary

    # The merged model is not quantised as the base is.
    plain = {key: value for key, value in base.config.items() if not key.startswith("quantization")}
    described = describe(plain, base.name)
    read_vocabulary(base.path, described.config["vocab_size"])


def load_export(workspace: Workspace, export_id: str) -> Artifact:
    """An export whose GGUF is what was written.

    Raises:
        NotFound, CorruptArtifact: it is not there, or its file was changed.
    """
    artifact = workspace.load(export_id, "export")
    artifact.verify(GGUF)
    return artifact
