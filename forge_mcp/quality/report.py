"""The quality report of a dataset: Markdown for people and agents, and its figures for programs.

`forge_mcp.quality.page` makes the same report as one HTML file with charts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from forge_mcp.quality.reasons import REASONS, reason_of
from forge_mcp.quality.scores import WEIGHTS
from forge_mcp.quality.validator import Judged, Validation
from forge_mcp.schemas.raft_examples import DIFFICULTIES, SPLITS

HISTOGRAM = "quality.png"
PAGE = "report.html"
WORST = 10
NAMED_ROWS = 5  # malformed rows that are shown with their lines

SCALES = (
    "Oracle relevance is a rank: 1 where retrieval finds the oracle first for the question, 0.75 "
    "at rank 4, 0 from rank 13 on. Distractor relevance is a similarity: of the nearest distractor "
    "to an oracle, the Jaccard similarity of runs of three sub-tokens; a hard distractor (same "
    "name, same class, a near hit of retrieval) that provably does not answer is no fault. "
    "docs/data_quality.md says how each figure is measured."
)


def generate_quality_report(
    validation: Validation, *, title: str, thresholds: Mapping[str, Any], histogram: bool = True
) -> str:
    """The whole report as Markdown.

    Args:
        validation: what was found.
        title: of the report, e.g. the dataset's id.
        thresholds: the quality section of the settings.
        histogram: whether the image `HISTOGRAM` is written beside the report.
    """
    verdict = "passed" if validation.passed else "REFUSED"
    parts = [
        f"# Data quality of {title}: {verdict}",
        *(f"- {reason}" for reason in validation.reasons),
        "",
        summary(validation),
        "",
        "## Before and after filtering",
        f"All figures lie between 0 and 1. {SCALES}",
        "",
        _table(("dimension", "before", "after"), before_after(validation)),
        "## What is kept",
        *(f"{line}\n" for line in kept_lines(validation)),
        *(_table(head, rows) for head, rows in kept_tables(validation)),
        "## Scores",
        f"![Histogram of the scores]({HISTOGRAM})\n" if histogram else "",
        _table(("score", "all", "kept"), score_bins(validation.judged)),
        "## Failure modes",
        _failure_table(validation),
        "## Worst examples",
        _worst(validation),
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
        "malformed": [f"{f.file}:{f.line}: {f.message}" for f in validation.malformed],
        "preferences": validation.preferences,
        "thresholds": dict(thresholds),
        "weights": WEIGHTS,
        "worst": [
            {"id": j.example.id, "score": round(j.score.value, 4), "messages": j.score.messages}
            for j in worst_examples(validation.judged)
        ],
    }


# -- what both reports show --------------------------------------------------------------------


def summary(validation: Validation) -> str:
    """The most important figures in a few sentences."""
    metrics = validation.metrics
    contaminated = metrics.contaminated_examples
    return (
        f"{metrics.valid_examples} of {metrics.total_examples} examples are kept; their mean "
        f"score is {metrics.quality_score_mean:.3f} (standard deviation "
        f"{metrics.quality_score_std:.3f}). {100 * metrics.duplicate_rate:.1f}% repeated another "
        f"example, {100 * metrics.leak_rate:.1f}% showed a document of another split. "
        + (
            "HumanEval was not looked for: set quality.humaneval_path for it."
            if contaminated is None
            else f"{contaminated} held a HumanEval problem."
        )
    )


def before_after(validation: Validation) -> list[tuple[str, str, str]]:
    """The dimensions of `score_data_quality` for all examples and for the kept ones."""
    return [
        (name.replace("_", " "), f"{validation.before[name]:.3f}", f"{value:.3f}")
        for name, value in validation.after.items()
    ]


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def kept_lines(validation: Validation) -> list[str]:
    """What else is to be said of the kept examples."""
    kept = validation.kept
    absent = sum(example.oracle_absent for example in kept)
    closed = sum(example.closed_book for example in kept)
    lines = [
        f"{absent} of them are shown without their oracle, {closed} without any document "
        "(closed book)."
    ]
    if validation.preferences:
        pairs = ", ".join(
            f"{name.replace('_', ' ')} {n}" for name, n in validation.preferences.items()
        )
        lines.append(f"Preference pairs: {pairs}.")
    return lines


def kept_tables(validation: Validation) -> list[Table]:
    """Tables of the kept examples: by split and difficulty, kind, language, licence, author."""
    kept = validation.kept
    cells = Counter((example.split, example.difficulty) for example in kept)
    by_split: list[tuple[str, ...]] = [
        (
            split,
            *(str(cells[(split, d)]) for d in DIFFICULTIES),
            str(sum(cells[(split, d)] for d in DIFFICULTIES)),
        )
        for split in SPLITS
    ]
    used = {i for e in kept for i in (*e.oracle_ids, *e.distractor_ids)}
    documents = [block for block_id, block in validation.documents.items() if block_id in used]
    tables: list[Table] = [(("split", *DIFFICULTIES, "all"), by_split)]
    for head, counts in (
        (("kind of fact", "examples"), Counter(e.fact.kind.replace("_", " ") for e in kept)),
        (("language", "documents"), Counter(d.language for d in documents)),
        (("licence", "documents"), Counter(d.license or "not known" for d in documents)),
        (("author", "examples"), Counter(e.author for e in kept)),
    ):
        tables.append((head, [(name, str(count)) for name, count in counts.most_common()]))
    return tables


def score_bins(judged: Sequence[Judged]) -> list[tuple[str, ...]]:
    """Numbers of all and of the kept examples by score, in tenths."""
    bins = Counter(min(9, int(j.score.value * 10)) for j in judged)
    kept = Counter(min(9, int(j.score.value * 10)) for j in judged if not j.reasons)
    return [
        (f"{b / 10:.1f} to {(b + 1) / 10:.1f}", str(bins[b]), str(kept[b]))
        for b in range(10)
        if bins[b]
    ]


def failures(validation: Validation) -> list[tuple[str, str, str, str]]:
    """Reason, number of examples, meaning and advice, the most frequent first."""
    return [
        (reason.replace("_", " "), str(count), *REASONS[reason])
        for reason, count in validation.dropped.items()
    ]


def worst_examples(judged: Sequence[Judged]) -> list[Judged]:
    """The examples with the lowest scores, dropped or kept, the worst first."""
    return sorted(judged, key=lambda j: (j.score.value, j.example.id))[:WORST]


def why(one: Judged) -> str:
    """What is wrong with an example, or what makes its score low."""
    low = [f"{name} {value:.2f}" for name, value in one.score.parts().items() if value < 0.75]
    told = {reason_of(message) for message in one.score.messages}
    reasons = [reason.replace("_", " ") for reason in one.reasons if reason not in told]
    return "; ".join([*one.score.messages, *reasons, *low]) or "nothing is wrong with it"


def places(one: Judged, validation: Validation) -> list[str]:
    """Where the oracles of an example stand."""
    found = (validation.documents.get(block_id) for block_id in one.example.oracle_ids)
    return [f"{d.path}:{d.start_line}-{d.end_line}" for d in found if d is not None]


# -- Markdown ----------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _failure_table(validation: Validation) -> str:
    if not validation.dropped:
        return "No example was dropped.\n"
    table = _table(("reason", "examples", "meaning", "what to do"), failures(validation))
    rows = validation.malformed[:NAMED_ROWS]
    return table + "".join(f"- {row.file}, line {row.line}: {row.message}\n" for row in rows)


def _worst(validation: Validation) -> str:
    return _table(
        ("score", "example", "question", "oracles", "why"),
        (
            (
                f"{one.score.value:.2f}",
                one.example.id,
                one.example.question,
                ", ".join(places(one, validation)),
                why(one),
            )
            for one in worst_examples(validation.judged)
        ),
    )
