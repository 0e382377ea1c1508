"""The skill `evaluate` on a tiny trained run, and what it writes."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from judging_cases import PROJECT, make_case, make_closed, make_dataset, make_function
from training_models import make_base

from forge_mcp.errors import BadInput, Cancelled, GateRefused, NotFound
from forge_mcp.judging.results import Answered, EvaluationReport
from forge_mcp.pipeline.evaluate import EvaluateRequest, EvaluateResult, evaluate
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import TrainRequest, train
from forge_mcp.schemas.events import Event
from forge_mcp.serving.registry import register
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs

LOOSE = {
    "max_perplexity_ratio": 1.5,
    "max_tokens": 24,
    "perplexity_examples": 9,
    "closed_book_examples": 4,
    "text_tokens": 200,
    "reconstruction_blocks": 2,
}


def context(workspace: Workspace, **judging: Any) -> SkillContext:
    return SkillContext(
        workspace=workspace,
        settings=load_settings(call={"judging": LOOSE | judging}),
        project=PROJECT,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Artifact]:
    """A workspace with a run of two steps on a tiny base."""
    folder = tmp_path_factory.mktemp("judging")
    workspace = Workspace(folder / "forge")
    cases = [
        *(make_case(n, absent=n % 4 == 0) for n in range(12)),
        *(make_case(n, split="train") for n in range(100, 110)),
        *(make_function(n) for n in (110, 111, 112)),
        *(make_closed(n) for n in range(100, 106)),
        *(make_case(n, split="valid") for n in range(200, 203)),
    ]
    dataset = make_dataset(workspace, cases)
    training = {"rank": 4, "lora_alpha": 4.0, "max_steps": 2, "warmup_steps": 1}
    result = train(
        TrainRequest(dataset=dataset.id, base=str(make_base(folder / "tiny"))),
        SkillContext(workspace, load_settings(call={"training": training}), PROJECT),
    )
    return workspace, workspace.load(result.run_id)


@pytest.fixture
def run(trained: tuple[Workspace, Artifact], tmp_path: Path) -> tuple[Workspace, Artifact]:
    """The same in a workspace of its own, so that tests do not find each other's reports."""
    workspace, run = trained
    for kind in ("corpora", "datasets", "runs"):
        shutil.copytree(workspace.home / kind, tmp_path / "forge" / kind)
    mine = Workspace(tmp_path / "forge")
    return mine, mine.load(run.id)


def report_of(workspace: Workspace, report_id: str) -> EvaluationReport:
    text = workspace.load(report_id, "report").file("report.json").read_text()
    return EvaluationReport.model_validate_json(text)


def copy_of(run: Artifact, workspace: Workspace, parents: list[str]) -> Artifact:
    """Another run with the same files."""
    inputs_hash = hash_inputs({"copy of": run.id, "parents": parents})
    with workspace.stage("run", PROJECT) as staged:
        shutil.copytree(run.path, staged.path, dirs_exist_ok=True)
        (staged.path / "manifest.json").unlink()
        return staged.commit(
            id=workspace.new_id("run", PROJECT, inputs_hash),
            inputs_hash=inputs_hash,
            parents=parents,
        )


def deploy(workspace: Workspace, run_id: str) -> None:
    register(
        workspace,
        id="deploy-demo-0001",
        project=PROJECT,
        model="demo-1",
        target="llamacpp",
        run=run_id,
        export="export-demo-0001",
    )


def test_a_run_is_judged_and_the_report_holds_every_figure(
    run: tuple[Workspace, Artifact],
) -> None:
    workspace, tuned = run
    events: list[Event] = []
    ctx = context(workspace)
    ctx = SkillContext(workspace, ctx.settings, PROJECT, sink=events.append)
    result = evaluate(EvaluateRequest(run=tuned.id, max_examples=5), ctx)
    assert result.reasons == []
    assert result.passed
    assert result.deployed is None
    # The base is random: worse than guessing among its 259 tokens. Two steps help a little.
    assert 200 < result.tuned["perplexity"] < result.base["perplexity"] < 1000
    gain = 1 - result.tuned["perplexity"] / result.base["perplexity"]
    assert result.improvement_over_base["perplexity"] == pytest.approx(100 * gain)
    text = json.dumps(result.model_dump(mode="json"), allow_nan=False)
    assert EvaluateResult.model_validate_json(text) == result
    assert 0 < result.seconds < 60

    artifact = workspace.load(result.report_id, "report")
    artifact.verify()
    assert artifact.manifest.parents == [tuned.id, tuned.manifest.parents[0]]
    report = report_of(workspace, result.report_id)
    assert report.num_training_examples == 13
    assert {s.name: (s.asked, s.of) for s in report.sections} == {
        "open_book": (9, 12),
        "closed_book": (6, 6),
        "text": (200, 200),
        "code": (2, 2),
        "speed": (1, 1),
    }
    for section in report.sections:
        asked = {"base", "tuned"}
        if section.name == "closed_book":
            asked |= {"base_retrieval", "tuned_retrieval"}
        assert set(section.metrics) == asked
        for role, metrics in section.metrics.items():
            prefix = "" if section.name == "open_book" else f"{section.name}."
            for metric in metrics:
                assert metric.low <= metric.value <= metric.high
                if role in ("base", "tuned"):
                    assert getattr(result, role)[prefix + metric.name] == metric.value
    assert {"perplexity", "fact_perplexity", "answer_accuracy", "closed_book.fact_perplexity"} <= (
        set(result.tuned)
    )
    assert {"text.perplexity", "code.edit_similarity", "code.codebleu", "speed.ms_per_token"} <= (
        set(result.tuned)
    )
    assert report.perplexity == result.tuned["perplexity"]
    assert report.reconstruction_score == result.tuned["code.edit_similarity"]
    assert report.codebleu_score == result.tuned["code.codebleu"]
    assert report.humaneval_pass_rate is None
    assert any("HumanEval" in line for line in report.not_measured)
    assert [t.met for t in report.targets] == [False, None, False, True]
    (comparison,) = report.comparisons
    assert "open_book.fact_perplexity" in comparison.better

    markdown, page = (
        artifact.file(name).read_text("utf-8") for name in ("report.md", "report.html")
    )
    assert "Deploy" in markdown[:400]
    assert page.count("data:image/png;base64,") == 3
    for name in (report.loss_curve, report.metric_distribution):
        assert artifact.file(name).read_bytes().startswith(b"\x89PNG")
    answers = [Answered.model_validate(row) for row in artifact.rows("answers.jsonl")]
    assert [set(row.answers) for row in answers] == [
        *([{"base", "tuned"}] * 5),
        *([{"base", "tuned", "base_retrieval", "tuned_retrieval"}] * 4),
    ]
    written = list(artifact.rows("written.jsonl"))
    assert len(written) == 2
    assert all(set(row["written"]) == {"base", "tuned"} for row in written)
    progress = [e.payload for e in events if e.kind == "progress" and "eta_seconds" in e.payload]
    assert [p["done"] for p in progress] == sorted(p["done"] for p in progress)
    assert progress[-1]["done"] == pytest.approx(progress[-1]["total"], rel=0.01)
    assert progress[-1]["eta_seconds"] == pytest.approx(0, abs=0.5)

    again = evaluate(EvaluateRequest(run=tuned.id, max_examples=5), ctx)
    assert again == result
    assert evaluate(EvaluateRequest(run=tuned.id, max_examples=4), ctx).report_id != (
        result.report_id
    )


def test_a_gate_that_says_no_gives_reasons_and_a_report(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    result = evaluate(
        EvaluateRequest(run=tuned.id, max_examples=1),
        context(workspace, max_perplexity_ratio=0.5, closed_book_examples=0, text_tokens=0),
    )
    assert not result.passed
    (reason,) = result.reasons
    assert "not within 0.5 times the base (tiny) beyond the noise" in reason
    artifact = workspace.load(result.report_id)
    for name in ("report.md", "report.html"):
        text = artifact.file(name).read_text("utf-8")
        assert "Do not deploy" in text
        assert "not within 0.5 times" in text


def test_a_run_is_not_judged_on_what_it_was_trained_on(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    trained = make_dataset(workspace, [make_case(n) for n in range(100, 110)], "trained")
    with pytest.raises(GateRefused, match="it was trained on them") as refused:
        evaluate(EvaluateRequest(run=tuned.id, dataset=trained.id), context(workspace))
    assert "10 of 10 questions" in refused.value.cause
    some = make_dataset(
        workspace, [*(make_case(n) for n in range(8)), *(make_case(n) for n in (100, 101))], "some"
    )
    result = evaluate(EvaluateRequest(run=tuned.id, dataset=some.id), context(workspace))
    (section, *_) = report_of(workspace, result.report_id).sections
    assert section.of == 8
    assert "2 questions were left out: the run was trained on them." in section.notes


def test_the_deployed_model_is_asked_too(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    request = EvaluateRequest(run=tuned.id, max_examples=3)
    alone = evaluate(request, context(workspace))
    leaking = make_dataset(workspace, [make_case(n, split="train") for n in (1, 2, 3)], "other")
    other = copy_of(tuned, workspace, [leaking.id])
    deploy(workspace, other.id)
    result = evaluate(request, context(workspace))
    assert result.report_id != alone.report_id
    assert result.deployed is not None
    same = {name for name in result.deployed if not name.startswith("speed.")}
    assert {name: result.deployed[name] for name in same} == {
        name: result.tuned[name] for name in same
    }, "the deployed run is a copy of this one"
    report = report_of(workspace, result.report_id)
    assert report.deployed_model == other.id
    against = {c.against: c for c in report.comparisons}
    assert set(against) == {"base", "deployed"}
    assert against["deployed"].n_left_out == 3
    ratios = {
        role: next(m for m in c.differences if m.name == "open_book.perplexity")
        for role, c in against.items()
    }
    assert ratios["base"].n == 9
    assert ratios["deployed"].n < 9
    assert ratios["deployed"].value == 1

    shutil.rmtree(other.path)
    result = evaluate(request, context(workspace))
    assert not result.passed
    assert f"its run {other.id} is gone" in result.reasons[0]


def test_a_control_was_tuned_on_something_else(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    elsewhere = make_dataset(workspace, [make_case(n, split="train") for n in (300, 301)], "else")
    control = copy_of(tuned, workspace, [elsewhere.id])
    request = EvaluateRequest(run=tuned.id, control=control.id, max_examples=2)
    result = evaluate(request, context(workspace))
    assert not result.passed, "it is a copy: it knows as much"
    assert "does not know this repository better than the control" in result.reasons[0]
    report = report_of(workspace, result.report_id)
    assert report.control_model == control.id
    assert {"open_book", "closed_book"} == {
        s.name for s in report.sections if "control" in s.metrics
    }
    for parents, cause in (
        (tuned.manifest.parents, "trained on code of this repository"),
        ([elsewhere.id], "tuned from another base"),
    ):
        wrong = copy_of(tuned, workspace, [*parents, elsewhere.id])
        if "base" in cause:
            path = wrong.path / "adapter_config.json"
            config = json.loads(path.read_text())
            config["base"]["weights_sha256"] = "0" * 64
            path.write_text(json.dumps(config))
            wrong = rehashed(wrong, workspace)
        with pytest.raises(BadInput, match="is no control") as error:
            evaluate(EvaluateRequest(run=tuned.id, control=wrong.id), context(workspace))
        assert cause in error.value.cause


def rehashed(run: Artifact, workspace: Workspace) -> Artifact:
    """The same run with the checksums of its files as they are now."""
    inputs_hash = hash_inputs({"rehashed": run.id})
    with workspace.stage("run", PROJECT) as staged:
        shutil.copytree(run.path, staged.path, dirs_exist_ok=True)
        (staged.path / "manifest.json").unlink()
        return staged.commit(
            id=workspace.new_id("run", PROJECT, inputs_hash),
            inputs_hash=inputs_hash,
            parents=run.manifest.parents,
        )


def test_a_budget_asks_fewer_questions_and_says_so(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    request = EvaluateRequest(run=tuned.id, minutes=0.0001)
    report = report_of(workspace, evaluate(request, context(workspace)).report_id)
    assert "every part was cut" in report.budget_note
    assert "Even the fewest" in report.budget_note
    assert {s.name: s.asked for s in report.sections}["open_book"] == 8
    request = EvaluateRequest(run=tuned.id, minutes=60)
    report = report_of(workspace, evaluate(request, context(workspace)).report_id)
    assert report.budget_note == ""


def test_programs_are_run_where_that_was_asked_for(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    few = {"humaneval_problems": 2, "humaneval_samples": 2, "max_examples": 1}
    request = EvaluateRequest(run=tuned.id, humaneval="small")
    result = evaluate(request, context(workspace, **few))
    assert result.tuned["humaneval.pass@1"] == 0, "random weights write no program"
    report = report_of(workspace, result.report_id)
    section = report.section("humaneval")
    assert section is not None
    assert section.asked == 2
    assert any("network" in note for note in section.notes)
    ledgers = list((workspace.home / "cache" / "humaneval" / "outcomes").glob("*.jsonl"))
    assert len(ledgers) == 2
    own = (files("forge_mcp") / "assets" / "code_problems.jsonl").read_bytes()
    (workspace.home / "problems.jsonl").write_bytes(own)
    asked = EvaluateRequest(run=tuned.id, humaneval="problems.jsonl")
    ctx = replace(context(workspace, **few), repository=workspace.home)
    again = evaluate(asked, ctx)
    assert again.report_id != result.report_id
    assert again.tuned["humaneval.pass@1"] == 0
    with pytest.raises(BadInput, match=r"nowhere\.jsonl"):
        evaluate(EvaluateRequest(run=tuned.id, humaneval="nowhere.jsonl"), ctx)


def test_a_run_that_is_deployed_itself_is_compared_with_the_base_alone(
    run: tuple[Workspace, Artifact],
) -> None:
    workspace, tuned = run
    deploy(workspace, tuned.id)
    request = EvaluateRequest(run=tuned.id, max_examples=1)
    assert evaluate(request, context(workspace)).deployed is None


def test_what_cannot_be_judged_is_said(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    with pytest.raises(NotFound, match="no run 'run-x'"):
        evaluate(EvaluateRequest(run="run-x"), context(workspace))
    with pytest.raises(BadInput, match=r"No held-out question fits"):
        evaluate(EvaluateRequest(run=tuned.id), context(workspace, max_tokens=512))
    empty = make_dataset(workspace, [make_case(1, split="train")], "empty")
    with pytest.raises(BadInput, match=r"test split of .* is empty"):
        evaluate(EvaluateRequest(run=copy_of(tuned, workspace, [empty.id]).id), context(workspace))
    assert workspace.artifacts("report") == []


def test_cancelling_leaves_nothing(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    stop = threading.Event()
    seen: list[Event] = []

    def sink(event: Event) -> None:
        seen.append(event)
        if len(seen) == 3:
            stop.set()

    ctx = SkillContext(workspace, context(workspace).settings, PROJECT, sink=sink, cancel=stop)
    with pytest.raises(Cancelled):
        evaluate(EvaluateRequest(run=tuned.id), ctx)
    assert len(seen) == 3
    assert workspace.artifacts("report") == []


def test_a_dataset_without_closed_book_questions_is_judged_on_reading(
    run: tuple[Workspace, Artifact],
) -> None:
    workspace, tuned = run
    plain = make_dataset(
        workspace,
        [*(make_case(n) for n in range(9)), make_case(400, split="train")],
        "plain",
    )
    result = evaluate(EvaluateRequest(run=tuned.id, dataset=plain.id), context(workspace))
    report = report_of(workspace, result.report_id)
    assert report.section("closed_book") is None
    assert any("knows without documents" in line for line in report.not_measured)
