"""The registry, and the skills export, deploy, models, rollback and query.

The model of these tests is scripted: its weights are written by hand so that it says one known
answer, token by token, and then ends its turn. So what is tested is the whole way (template,
tokens, weights, sampling, stopping) with an outcome that is known beforehand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from test_exporter import PlainRun, write_model, write_tokenizer

from forge_mcp.errors import (
    BadInput,
    Busy,
    Cancelled,
    CorruptArtifact,
    ForgeError,
    GateRefused,
    NotFound,
)
from forge_mcp.exporting.modelfile import parse_modelfile
from forge_mcp.machine import mlx
from forge_mcp.pipeline.deploy import DeployRequest, deploy
from forge_mcp.pipeline.export import ExportRequest, export
from forge_mcp.pipeline.models import (
    ActivateRequest,
    ModelsRequest,
    RollbackRequest,
    activate,
    models,
    rollback,
)
from forge_mcp.pipeline.query import QueryRequest, query
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.prompt import quote, render_answer, render_messages
from forge_mcp.schemas.raft_examples import ChatRow, Fact, RaftExample
from forge_mcp.serving import registry
from forge_mcp.serving.chat import Sampling, unload
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace, write_jsonl

GREEDY = Sampling(0.0, 1, 1.0, 64)
ANSWER = "##begin_quote##def zip_all(rows):##end_quote##\n<ANSWER>: `rows`"


def scripted_model(folder: Path, answer: str, *, ends: bool = True) -> Path:
    """A model that answers every chat with `answer` and then ends its turn (or never does).

    Its layers add nothing, so the next token depends on the last one alone: each token of the
    script has a direction of its own in the embedding, which the output matrix turns into the
    token after it. The script's tokens must differ.
    """
    from tokenizers import AddedToken

    mx = mlx()
    write_model(folder, tied=False)
    tokenizer = write_tokenizer(folder)
    added = [
        AddedToken(text, special=False, normalized=False)
        for text in ("##end_quote##\n", "<ANSWER>:", "def zip_all(rows):", " `rows`")
    ]
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(str(folder))
    script = tokenizer.encode(answer, add_special_tokens=False)
    first = tokenizer.encode("assistant\n", add_special_tokens=False)[-1]
    chain = [first, *script, tokenizer.eos_token_id if ends else script[0]]
    assert len(set(chain[:-1])) == len(chain) - 1, "the script repeats a token"

    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    weights = mx.load(str(folder / "model.safetensors"))
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = mx.zeros(array.shape)
        elif name.endswith("norm.weight"):
            weights[name] = mx.ones(array.shape)
    embedding = mx.zeros((len(tokenizer), 64))
    embedding[:, 63] = 1.0  # every other token: a direction that leads to the end
    head = mx.zeros((len(tokenizer), 64))
    head[tokenizer.eos_token_id, 63] = 1.0
    for place, (token, after) in enumerate(itertools.pairwise(chain)):
        embedding[token, 63] = 0.0
        embedding[token, place] = 1.0
        head[after, place] = 1.0
    weights["model.embed_tokens.weight"] = embedding
    weights["lm_head.weight"] = head
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted") / "m", ANSWER)


# -- the registry ----------------------------------------------------------------------------------


def put(workspace: Workspace, number: int, project: str = "p") -> registry.Standing:
    return registry.register(
        workspace,
        id=f"deploy-{project}-{number}",
        project=project,
        model=f"{project}-{number}",
        target="llamacpp",
        run=f"run-{number}",
        export=f"export-{number}",
    )


def names(standing: registry.Standing) -> tuple[str | None, str | None]:
    return (
        standing.active.model if standing.active else None,
        standing.previous.model if standing.previous else None,
    )


def test_deploying_activating_and_rolling_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "forge")
    with pytest.raises(NotFound, match="deployed"):
        registry.get_active_model(workspace, "p")
    with pytest.raises(NotFound, match="earlier"):
        registry.rollback(workspace, "p")
    assert names(put(workspace, 1)) == ("p-1", None)
    with pytest.raises(NotFound, match="earlier"):
        registry.rollback(workspace, "p")
    assert names(put(workspace, 1)) == ("p-1", None)
    assert names(put(workspace, 2)) == ("p-2", "p-1")
    assert names(registry.rollback(workspace, "p")) == ("p-1", "p-2")
    assert names(registry.rollback(workspace, "p")) == ("p-2", "p-1")
    put(workspace, 3)
    assert names(registry.set_active_model(workspace, "p", "p-1")) == ("p-1", "p-3")
    assert names(registry.set_active_model(workspace, "p", "deploy-p-1")) == ("p-1", "p-3")
    put(workspace, 9, "other")
    assert [d.model for d in registry.deployments(workspace, "p")] == ["p-3", "p-2", "p-1"]
    with pytest.raises(NotFound, match="other-9"):
        registry.find_deployment(workspace, "p", "other-9")
    again = Workspace(tmp_path / "forge")
    assert registry.get_active_model(again, "p").model == "p-1"


def test_a_change_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "forge")
    put(workspace, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(registry, "_switch", fail)
    with pytest.raises(RuntimeError):
        put(workspace, 2)
    assert names(registry.standing(workspace, "p")) == ("p-1", None)
    assert [d.model for d in registry.deployments(workspace, "p")] == ["p-1"]


def test_a_registry_that_another_process_writes_is_busy(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "forge")
    put(workspace, 1)
    other = Workspace(tmp_path / "forge").database
    workspace.database.execute("PRAGMA busy_timeout = 50")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        put(workspace, 2)
    other.execute("ROLLBACK")
    assert names(put(workspace, 2)) == ("p-2", "p-1")


# -- the skills ------------------------------------------------------------------------------------


def make_block(name: str, lines: int = 2) -> CodeBlock:
    source = f"def {name}(rows):\n" + "    rows = list(rows)\n" * (lines - 1)
    return CodeBlock(
        id=f"src/{name}.py::{name}",
        content_hash=hashlib.sha256(source.encode()).hexdigest(),
        path=f"src/{name}.py",
        language="python",
        block_type="function",
        name=name,
        qualified_name=name,
        source_code=source,
        start_line=11,
        end_line=10 + lines,
        start_byte=0,
        end_byte=len(source),
        tokens=9,
    )


@dataclass
class House:
    """A workspace with a corpus, a dataset and a run of the scripted model."""

    context: SkillContext
    run: Artifact
    events: list[Event] = field(default_factory=list)

    @property
    def workspace(self) -> Workspace:
        return self.context.workspace

    def report(self, passed: bool, number: int, against: str | None = None) -> None:
        with self.workspace.stage("report", "demo") as staged:
            (staged.path / "report.json").write_text(json.dumps({"deployed_model": against}))
            staged.commit(
                id=f"report-demo-{number}",
                inputs_hash=f"{number:064}",
                parents=[self.run.id],
                result={"passed": passed, "reasons": [] if passed else ["worse than the base"]},
            )

    def logs(self) -> str:
        return "\n".join(str(e.payload.get("message")) for e in self.events if e.kind == "log")


def keep(workspace: Workspace, kind: Any, number: int, files: dict[str, Any], parent: str) -> Any:
    with workspace.stage(kind, "demo") as staged:
        for name, rows in files.items():
            write_jsonl(staged.path / name, rows)
        id = workspace.new_id(kind, "demo", f"{number:064}")
        parents = [parent] if parent else []
        return staged.commit(id=id, inputs_hash=f"{number:064}", parents=parents)


@pytest.fixture
def house(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """Everything but the run's loader is real; `load_run` gives the scripted model."""
    workspace = Workspace(tmp_path / "forge")
    blocks = [make_block("zip_all"), make_block("map_all"), make_block("huge_all", lines=300)]
    hidden = [
        RejectedBlock(**make_block("short_all").model_dump(), reasons=["too short"]),
        RejectedBlock(**make_block("secret_all").model_dump(), reasons=["too short", "secret"]),
    ]
    corpus = keep(workspace, "corpus", 1, {"blocks.jsonl": blocks, "rejected.jsonl": hidden}, "")
    question = "Which parameters does `zip_all` take?"
    answer = render_answer(quote("def zip_all(rows):"), "`rows`")
    row = ChatRow(messages=render_messages(blocks[:1], question, answer, "You know demo."))
    splits: tuple[Any, ...] = ("train", "valid", "test")
    examples = [
        RaftExample(
            id=split,
            question=question,
            oracle_ids=[blocks[0].id],
            distractor_ids=[],
            reasoning=quote("def zip_all(rows):"),
            final_answer="`rows`",
            difficulty="easy",
            fact=Fact(kind="parameters", block=blocks[0].id, value="rows"),
            split=split,
        )
        for split in splits
    ]
    rows = {f"{split}.jsonl": [row] for split in splits}
    files = {"documents.jsonl": blocks[:1], "examples.jsonl": examples, **rows}
    original = keep(workspace, "dataset", 2, files, corpus.id)
    dataset = keep(workspace, "dataset", 3, files, original.id)
    run = keep(workspace, "run", 4, {}, dataset.id)
    monkeypatch.setattr("forge_mcp.training.run.load_run", lambda artifact: PlainRun(base))
    settings = load_settings(
        None,
        {
            "exporting": {"quantization": "f16"},
            "serving": {"num_ctx": 512, "num_predict": 64, "threads": 1},
        },
    )
    found = House(SkillContext(workspace, settings, "demo"), run)
    found.context = SkillContext(workspace, settings, "demo", sink=found.events.append)
    yield found
    unload()


def test_an_export_holds_what_its_result_says(house: House) -> None:
    result = export(ExportRequest(run=house.run.id), house.context)
    artifact = house.workspace.load(result.export_id, "export")
    artifact.verify()
    assert artifact.manifest.parents == [house.run.id]
    assert result.passed
    assert (result.parity.argmax_agreement, result.parity.answers) == (1.0, 1.0)
    assert Path(result.gguf).stat().st_size == result.bytes
    assert result.modelfile is not None
    parsed = parse_modelfile(Path(result.modelfile).read_text())
    assert (parsed.gguf_path, parsed.system_prompt) == ("./model.gguf", "You know demo.")
    assert json.loads((artifact.path / "parity.json").read_text())["answers_stopped"] == 1
    assert not (artifact.path / "fused").exists()
    assert GGUFReader(result.gguf).fields["general.name"].contents() == "demo"

    assert export(ExportRequest(run=house.run.id), house.context) == result
    smaller = export(ExportRequest(run=house.run.id, quantization="q8_0"), house.context)
    assert smaller.export_id != result.export_id
    assert smaller.bytes < result.bytes
    with pytest.raises(BadInput, match="q3"):
        export(ExportRequest(run=house.run.id, quantization="q3"), house.context)


def test_an_export_that_differs_is_refused_and_not_kept(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = PlainRun(write_model(tmp_path / "good", tied=False))
    other = PlainRun(
        write_model(
            tmp_path / "other", tied=False, change=lambda w: w.update({k: -v for k, v in w.items()})
        )
    )
    monkeypatch.setattr(good, "fused_weights", other.fused_weights)
    monkeypatch.setattr("forge_mcp.training.run.load_run", lambda artifact: good)
    with pytest.raises(GateRefused, match="agrees in") as refused:
        export(ExportRequest(run=house.run.id), house.context)
    assert "KL" in refused.value.cause
    assert list(house.workspace.folder("export").iterdir()) == []
    assert list((house.workspace.home / "staging").iterdir()) == []


def test_only_a_run_that_passed_its_comparison_is_deployed(house: House) -> None:
    request = DeployRequest(run_or_export=house.run.id)
    with pytest.raises(GateRefused, match=f"forge-mcp evaluate {house.run.id}"):
        deploy(request, house.context)
    house.report(False, 1)
    with pytest.raises(GateRefused, match="worse than the base"):
        deploy(request, house.context)
    assert list(house.workspace.folder("export").iterdir()) == []
    assert models(ModelsRequest(), house.context).models == []


def test_a_model_that_was_not_compared_with_the_deployed_one_is_refused(house: House) -> None:
    house.report(True, 1)  # against the base alone
    registry.register(
        house.workspace,
        id="deploy-demo-other",
        project="demo",
        model="demo-other",
        target="llamacpp",
        run="run-demo-other",
        export="export-demo-other",
    )
    with pytest.raises(GateRefused, match="against run-demo-other, which is deployed"):
        deploy(DeployRequest(run_or_export=house.run.id), house.context)
    assert registry.get_active_model(house.workspace, "demo").model == "demo-other"
    house.report(True, 2, against="run-demo-other")
    assert deploy(DeployRequest(run_or_export=house.run.id), house.context).previous == "demo-other"


def test_deploy_query_and_roll_back(house: House) -> None:
    with pytest.raises(NotFound, match="retrain"):
        query(QueryRequest(text="What?"), house.context)
    house.report(True, 1)
    first = deploy(DeployRequest(run_or_export=house.run.id), house.context)
    assert (first.previous, first.target) == (None, "llamacpp")
    assert first.model == first.deployment_id.removeprefix("deploy-")
    again = deploy(DeployRequest(run_or_export=house.run.id), house.context)
    assert (again.deployment_id, again.previous) == (first.deployment_id, None)

    house.events.clear()
    asked = "Which parameters does `zip_all` take, or `huge_all`, `short_all`, `secret_all`?"
    result = query(QueryRequest(text=asked), house.context)
    assert result.answer == "`rows`"
    assert result.complete
    assert [place.model_dump() for place in result.citations] == [
        {"path": "src/zip_all.py", "start_line": 11, "end_line": 11}
    ]
    assert result.unverified_quotes == 0
    given = {source.name for source in result.sources}
    assert {"zip_all", "short_all"} <= given
    assert not given & {"secret_all", "huge_all"}
    assert "Left out src/huge_all.py" in house.logs()
    streamed = [e.payload["text"] for e in house.events if "text" in e.payload]
    assert "".join(streamed) == ANSWER

    closed = query(QueryRequest(text="What?", max_documents=0), house.context)
    assert (closed.sources, closed.citations, closed.unverified_quotes) == ([], [], 1)
    with pytest.raises(BadInput, match="question is longer"):
        query(QueryRequest(text="word " * 600), house.context)
    with pytest.raises(BadInput, match="empty"):
        query(QueryRequest(text="  "), house.context)

    small = export(ExportRequest(run=house.run.id, quantization="q8_0"), house.context)
    second = deploy(DeployRequest(run_or_export=small.export_id), house.context)
    assert second.previous == first.model
    listed = models(ModelsRequest(), house.context)
    assert [(m.model, m.active) for m in listed.models] == [
        (second.model, True),
        (first.model, False),
    ]
    back = rollback(RollbackRequest(), house.context)
    assert (back.active, back.previous) == (first.model, second.model)
    assert query(QueryRequest(text="What?", model=second.model), house.context).model == (
        second.model
    )
    forward = activate(ActivateRequest(model=second.model), house.context)
    assert (forward.active, forward.previous) == (second.model, first.model)

    (house.workspace.load(first_export(house, first.model), "export").path / "model.gguf").unlink()
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        rollback(RollbackRequest(), house.context)
    assert models(ModelsRequest(), house.context).active == second.model


def first_export(house: House, model: str) -> str:
    return registry.find_deployment(house.workspace, "demo", model).export


def test_a_changed_file_is_not_deployed_and_the_active_model_stays(house: House) -> None:
    house.report(True, 1)
    first = deploy(DeployRequest(run_or_export=house.run.id), house.context)
    small = export(ExportRequest(run=house.run.id, quantization="q8_0"), house.context)
    path = Path(small.gguf)
    path.write_bytes(path.read_bytes()[:-100] + b"x" * 100)
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        deploy(DeployRequest(run_or_export=small.export_id), house.context)
    assert models(ModelsRequest(), house.context).active == first.model


def test_a_model_that_says_nothing_is_not_deployed(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    dumb = PlainRun(scripted_model(tmp_path / "dumb", ""))
    monkeypatch.setattr("forge_mcp.training.run.load_run", lambda artifact: dumb)
    with pytest.raises(ForgeError, match="answers nothing"):
        deploy(DeployRequest(run_or_export=house.run.id), house.context)
    assert models(ModelsRequest(), house.context).active is None


def test_a_cancelled_export_leaves_nothing(house: House) -> None:
    cancel = threading.Event()

    def stop_at_writing(event: Event) -> None:
        if "writing" in str(event.payload.get("message")):
            cancel.set()

    context = SkillContext(
        house.workspace, house.context.settings, "demo", sink=stop_at_writing, cancel=cancel
    )
    with pytest.raises(Cancelled):
        export(ExportRequest(run=house.run.id), context)
    assert list(house.workspace.folder("export").iterdir()) == []
    assert list((house.workspace.home / "staging").iterdir()) == []


def test_a_system_prompt_that_no_modelfile_holds_is_told_and_exported(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = 'Say """hello""".'
    monkeypatch.setattr("forge_mcp.pipeline.export.system_prompt", lambda dataset: prompt)
    result = export(ExportRequest(run=house.run.id), house.context)
    assert result.modelfile is None
    assert "No Modelfile was written" in house.logs()
