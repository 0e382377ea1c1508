"""The quality report of a dataset, for people: Markdown with tables and a histogram."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forge_mcp.quality.scores import WEIGHTS
from forge_mcp.quality.validator import Judged, Validation
from forge_mcp.schemas.raft_examples import DIFFICULTIES, SPLITS

HISTOGRAM = "quality.png"
WORST = 10
BINS = 20

ADVICE = {
    "duplicate": "Lower raft.examples_per_block, or exclude generated and copied code "
    "(project.exclude).",
    "duplicate_across_splits": "The same code stands in several files; exclude the copies "
    "(project.exclude).",
    "low_quality": "Short, undocumented definitions score low: raise mining.min_tokens or set "
    "mining.require_docstring.",
    "low_oracle_relevance": "Many definitions share a name, so that retrieval finds another one "
    "first; exclude copies and generated code (project.exclude).",
    "high_distractor_relevance": "Near copies of the oracles are shown as distractors; exclude "
    "copied code (project.exclude).",
    "answering_distractor": "A distractor answers too: make the dataset again with synthesize.",
    "secret": "Rotate the credential, then run extract again: it removes what it recognises.",
    "false_fact": "The dataset does not fit its documents: make it again with synthesize.",
    "unverified_quote": "A quote stands in no document: make the dataset again with synthesize.",
    "unstated_fact": "Answers were edited by hand; state the fact's value in them.",
    "missing_document": "documents.jsonl lacks a block: make the dataset again with synthesize.",
    "changed_document": "documents.jsonl was edited: make the dataset again with synthesize.",
    "invalid_code": "A document is no valid Python for this Python version; exclude its file.",
    "answer_length": "Very long answers were written by hand; shorten them.",
}
OTHER_ADVICE = "Look at the worst examples below, correct their source and make the dataset again."


def generate_quality_report(
    validation: Validation, *, title: str, thresholds: Mapping[str, Any], histogram: bool = True
) -> str:
    """The whole report as Markdown.

    Args:
        validation: what was found.
        title: of the report, e.g. the dataset's id.
        thresholds: the quality section of the settings.
        histogram: whether `save_histogram` writes its image beside the report.
    """
    metrics = validation.metrics
    verdict = "passed" if validation.passed else "REFUSED"
    parts = [
        f"# Data quality of {title}: {verdict}",
        *(f"- {reason}" for reason in validation.reasons),
        "",
        f"{metrics.valid_examples} of {metrics.total_examples} examples are kept; their mean "
        f"score is {metrics.quality_score_mean:.3f} (standard deviation "
        f"{metrics.quality_score_std:.3f}). {100 * metrics.duplicate_rate:.1f}% repeated another "
        "example.",
        "",
        "## Before and after filtering",
        "All figures lie between 0 and 1; how each is measured stands in docs and in "
        "`forge_mcp.quality.scores`.",
        "",
        _table(
            ("dimension", "before", "after"),
            (
                (name.replace("_", " "), f"{validation.before[name]:.3f}", f"{value:.3f}")
                for name, value in validation.after.items()
            ),
        ),
        "## What is kept",
        _kept_tables(validation),
        "## Scores",
        f"![Histogram of the scores]({HISTOGRAM})\n" if histogram else "",
        _score_table(validation.judged),
        "## Failure modes",
        _failure_table(validation),
        "## Worst examples",
        _worst(validation.judged),
        "## Thresholds",
        _table(("setting", "value"), ((f"quality.{k}", str(v)) for k, v in thresholds.items())),
    ]
    return "\n".join(parts).rstrip() + "\n"


def report_json(
    validation: Validation, *, dataset_id: str, thresholds: Mapping[str, Any]
) -> dict[str, Any]:
    """The report for programs."""
    return {
        "kind": "data_quality",
        "dataset_id": dataset_id,
        "passed": validation.passed,
        "reasons": validation.reasons,
        "metrics": validation.metrics.model_dump(),
        "before": validation.before,
        "after": validation.after,
        "dropped": validation.dropped,
        "thresholds": dict(thresholds),
        "weights": WEIGHTS,
        "worst": [
            {"id": j.example.id, "score": round(j.score.value, 4), "messages": j.score.messages}
            for j in worst_examples(validation.judged)
        ],
    }


def save_histogram(validation: Validation, path: Path) -> None:
    """Scores of all and of the kept examples as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = [step / BINS for step in range(BINS + 1)]
    for label, judged, colour in (
        ("all", validation.judged, "#b8c4ce"),
        ("kept", [j for j in validation.judged if not j.reasons], "#2f6f9f"),
    ):
        values = [j.score.value for j in judged]
        axes.hist(values, bins=edges, label=f"{label} ({len(values)})", color=colour)
    axes.set_xlabel("quality score")
    axes.set_ylabel("examples")
    axes.set_xlim(0, 1)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": ""})


def worst_examples(judged: Sequence[Judged]) -> list[Judged]:
    """The examples with the lowest scores, dropped or kept, the worst first."""
    return sorted(judged, key=lambda j: (j.score.value, j.example.id))[:WORST]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _kept_tables(validation: Validation) -> str:
    kept = validation.kept
    cells = Counter((example.split, example.difficulty) for example in kept)
    by_split = _table(
        ("split", *DIFFICULTIES, "all"),
        (
            (
                split,
                *(str(cells[(split, d)]) for d in DIFFICULTIES),
                str(sum(cells[(split, d)] for d in DIFFICULTIES)),
            )
            for split in SPLITS
        ),
    )
    kinds = Counter(example.fact.kind for example in kept)
    absent = sum(example.oracle_absent for example in kept)
    by_kind = _table(
        ("kind of fact", "examples"),
        ((kind.replace("_", " "), str(count)) for kind, count in kinds.most_common()),
    )
    return f"{by_split}\n{absent} of them are shown without their oracle.\n\n{by_kind}"


def _score_table(judged: Sequence[Judged]) -> str:
    bins = Counter(min(9, int(j.score.value * 10)) for j in judged)
    kept = Counter(min(9, int(j.score.value * 10)) for j in judged if not j.reasons)
    return _table(
        ("score", "all", "kept"),
        (
            (f"{b / 10:.1f} to {(b + 1) / 10:.1f}", str(bins[b]), str(kept[b]))
            for b in range(10)
            if bins[b]
        ),
    )


def _failure_table(validation: Validation) -> str:
    if not validation.dropped:
        return "No example was dropped.\n"
    return _table(
        ("reason", "examples", "what to do"),
        (
            (reason.replace("_", " "), str(count), ADVICE.get(reason, OTHER_ADVICE))
            for reason, count in validation.dropped.items()
        ),
    )


def _worst(judged: Sequence[Judged]) -> str:
    rows = []
    for one in worst_examples(judged):
        example, score = one.example, one.score
        low = [f"{name} {value:.2f}" for name, value in score.parts().items() if value < 0.75]
        why = "; ".join([*score.messages, *one.reasons, *low]) or "nothing is wrong with it"
        rows.append((f"{score.value:.2f}", example.id, example.question, why))
    return _table(("score", "example", "question", "why"), rows)
