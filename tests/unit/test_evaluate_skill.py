"""The skill `evaluate` on a tiny trained run, and the report it writes."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from judging_cases import PROJECT, make_case, make_dataset
from training_models import make_base

from forge_mcp.errors import BadInput, Cancelled, NotFound
from forge_mcp.judging.plots import metric_comparison
from forge_mcp.judging.report import (
    AnsweredCase,
    EvaluationReport,
    group_accuracy,
    render_markdown,
)
from forge_mcp.pipeline.evaluate import EvaluateRequest, EvaluateResult, evaluate
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import TrainRequest, train
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.events import Event
from forge_mcp.serving.registry import register
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs

LOOSE = {"max_perplexity_ratio": 1.5, "max_tokens": 24, "perplexity_examples": 9}


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
        *(make_case(n, split="train") for n in range(100, 112)),
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
    for kind in ("datasets", "runs"):
        shutil.copytree(workspace.home / kind, tmp_path / "forge" / kind)
    mine = Workspace(tmp_path / "forge")
    return mine, mine.load(run.id)


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
    assert result.passed
    assert result.reasons == []
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
    report = EvaluationReport.model_validate_json(artifact.file("report.json").read_text())
    assert (report.num_eval_examples, report.num_answered_examples) == (9, 5)
    assert report.num_training_examples == 12
    markdown = artifact.file("report.md").read_text()
    assert markdown.index("**Deploy.**") < markdown.index("## Comparison")
    assert "That it answers better than the base is not shown" in markdown, "both answer at random"
    for role, metrics in report.metrics.items():
        assert {metric.name for metric in metrics} >= {
            "perplexity",
            "bits_per_byte",
            "answer_accuracy",
            "abstention_accuracy",
            "stopped_at_eos",
        }
        assert {m.name: m.value for m in metrics} == getattr(result, role)
        for metric in metrics:
            assert f"| {metric.name.replace('_', ' ')}" in markdown
            if metric.name == "perplexity":
                assert f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})" in markdown
    for name in (report.loss_curve, report.metric_comparison):
        assert artifact.file(name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in markdown
    answers = [AnsweredCase.model_validate(row) for row in artifact.rows("answers.jsonl")]
    assert [set(case.answers) for case in answers] == [{"base", "tuned"}] * 5
    progress = [e.payload for e in events if e.kind == "progress"]
    assert [p["done"] for p in progress] == sorted(p["done"] for p in progress)
    assert progress[-1]["done"] == progress[-1]["total"] == 2 * (9 + 5)

    again = evaluate(EvaluateRequest(run=tuned.id, max_examples=5), ctx)
    assert again == result
    assert evaluate(EvaluateRequest(run=tuned.id, max_examples=4), ctx).report_id != (
        result.report_id
    )


def test_a_gate_that_says_no_gives_reasons_and_a_report(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    result = evaluate(
        EvaluateRequest(run=tuned.id, max_examples=1), context(workspace, max_perplexity_ratio=0.5)
    )
    assert not result.passed
    (reason,) = result.reasons
    assert "times that of the base (tiny)" in reason
    markdown = workspace.load(result.report_id).file("report.md").read_text()
    assert "**Do not deploy.**" in markdown
    assert reason in markdown


def test_the_deployed_model_is_asked_too(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    request = EvaluateRequest(run=tuned.id, max_examples=3)
    alone = evaluate(request, context(workspace))
    leaking = make_dataset(workspace, [make_case(n, split="train") for n in (1, 2, 3)], "other")
    other = copy_of(tuned, workspace, [leaking.id])
    deploy(workspace, other.id)
    result = evaluate(request, context(workspace))
    assert result.report_id != alone.report_id
    assert result.deployed == result.tuned, "the deployed run is a copy of this one"
    report = EvaluationReport.model_validate_json(
        workspace.load(result.report_id).file("report.json").read_text()
    )
    assert report.deployed_model == other.id
    seen = report.num_seen_by_deployed
    assert seen > 0
    against = {c.against: c for c in report.comparisons}
    ratios = {role: c.perplexity_ratio for role, c in against.items()}
    assert ratios["base"]
    assert ratios["deployed"]
    assert ratios["base"].n == 9
    assert ratios["deployed"].n < 9
    assert ratios["deployed"].value == 1

    shutil.rmtree(other.path)
    result = evaluate(request, context(workspace))
    assert not result.passed
    assert f"its run {other.id} is gone" in result.reasons[0]


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
    with pytest.raises(BadInput, match=r"No held-out example .* fits"):
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


def test_text_of_models_cannot_break_the_report(run: tuple[Workspace, Artifact]) -> None:
    workspace, tuned = run
    result = evaluate(EvaluateRequest(run=tuned.id, max_examples=2), context(workspace))
    artifact = workspace.load(result.report_id)
    report = EvaluationReport.model_validate_json(artifact.file("report.json").read_text())
    (case, *_) = [AnsweredCase.model_validate(row) for row in artifact.rows("answers.jsonl")]
    hostile = "```\n# No report | at all\n````"
    case.question = "a | b\n# c"
    case.answers["tuned"].text = hostile
    markdown = render_markdown(report, [case])
    assert "a \\| b # c" in markdown
    assert f"`````text\n{hostile}\n`````" in markdown
    (group,) = group_accuracy([case], "kind")
    assert group.accuracy["tuned"].n == 1


def test_a_plot_is_drawn_with_one_or_three_models(tmp_path: Path) -> None:
    def metrics(perplexity: float) -> list[Metric]:
        return [
            Metric(name="perplexity", value=perplexity, low=1, high=2 * perplexity, n=9),
            Metric(name="answer_accuracy", value=0.5, low=0.2, high=0.8, n=9),
        ]

    sizes = []
    for roles in (("tuned",), ("base", "tuned", "deployed")):
        path = tmp_path / f"{len(roles)}.png"
        metric_comparison(path, {role: metrics(3.0) for role in roles})  # type: ignore[misc]
        sizes.append(path.stat().st_size)
    assert sizes[1] > sizes[0] > 5000
