"""Reports of evaluations, for the tests of the pages: as they come out, and as they may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forge_mcp.judging.intervals import share
from forge_mcp.judging.results import (
    Answered,
    Comparison,
    Contestant,
    Divergence,
    EvaluationReport,
    GroupAccuracy,
    ScoredAnswer,
    Section,
    SectionName,
    Target,
)
from forge_mcp.schemas.base import Metric

FOUR: tuple[Contestant, ...] = ("base", "base_retrieval", "tuned", "tuned_retrieval")
SIX: tuple[Contestant, ...] = (*FOUR, "deployed", "control")
MIDDLES: dict[Contestant, float] = {"base": 6.0, "tuned": 1.5}  # perplexity by example
HOSTILE = (
    "</pre></details><script>alert(1)</script> | a | b\n# heading\n```\n<img src=http://x.y/z>"
)
LONG = "AbstractSingletonProxyFactoryBean" * 12


def of(name: str, successes: int, n: int) -> Metric:
    metric = share(name, successes, n)
    assert metric is not None
    return metric


def value(name: str, at: float, spread: float = 0.1, n: int = 48) -> Metric:
    return Metric(name=name, value=at, low=at * (1 - spread), high=at * (1 + spread), n=n)


def reading(who: Contestant) -> list[Metric]:
    """What a contestant got on held-out files, by how good it is."""
    good = {"base": 8, "base_retrieval": 11, "tuned": 35, "tuned_retrieval": 38}.get(who, 20)
    loss = {"base": 7.08, "base_retrieval": 6.4, "tuned": 1.7, "tuned_retrieval": 1.62}.get(
        who, 2.9
    )
    return [
        value("perplexity", loss, 0.15, 128),
        value("bits_per_byte", loss / 5, 0.15, 128),
        value("fact_perplexity", 1 + loss / 8, 0.06, 96),
        of("fact_choice", 60 + good // 2, 96),
        of("answer_accuracy", good, 48),
        of("citation_precision", good + 20, 62),
        of("citation_recall", good, 40),
        of("abstention_accuracy", min(good // 5, 8), 8),
        of("false_abstention_rate", 12 - good // 4, 40),
        of("hallucination_rate", 70 - 3 * good // 2, 300),
        of("stopped_at_eos", 40 + good // 5, 48),
    ]


def knowing(who: Contestant) -> list[Metric]:
    """The same on trained code, without documents."""
    good = {"base": 0, "base_retrieval": 4, "tuned": 5, "tuned_retrieval": 13}.get(who, 2)
    loss = {"base": 44.3, "base_retrieval": 9.4, "tuned": 6.92, "tuned_retrieval": 3.1}.get(
        who, 21.0
    )
    return [
        value("fact_perplexity", loss, 0.3, 52),
        of("fact_choice", 16 + 2 * good, 52),
        of("answer_accuracy", good, 32),
        of("hallucination_rate", 30 - good, 90),
    ]


def groups(names: Mapping[str, int], among: tuple[Contestant, ...]) -> list[GroupAccuracy]:
    right = {"base": 0.2, "base_retrieval": 0.25, "tuned": 0.75, "tuned_retrieval": 0.8}
    return [
        GroupAccuracy(
            group=name,
            accuracy={
                who: of("answer_accuracy", round(n * right.get(who, 0.5)), n) for who in among
            },
        )
        for name, n in names.items()
    ]


def open_book(among: tuple[Contestant, ...] = FOUR) -> Section:
    return Section(
        name="open_book",
        asked=48,
        of=210,
        metrics={who: reading(who) for who in among},
        by_kind=groups({"signature": 14, "raises": 12, "callee_raises": 2, "returns": 20}, among),
        by_difficulty=groups({"easy": 22, "medium": 21, "hard": 5}, among),
        notes=["3 questions are longer than the model's context and were left out."],
        seconds=61.2,
    )


def closed_book(among: tuple[Contestant, ...] = FOUR) -> Section:
    return Section(
        name="closed_book",
        asked=32,
        of=400,
        metrics={who: knowing(who) for who in among},
        by_kind=groups({"signature": 20, "raises": 12}, among),
        by_difficulty=groups({"easy": 32}, among),
        seconds=28.9,
    )


def text(among: tuple[Contestant, ...] = ("base", "tuned")) -> Section:
    return Section(
        name="text",
        asked=8192,
        of=8192,
        metrics={
            who: [
                value("perplexity", 19.8 if who == "base" else 17.1, 0.2, 14),
                value("bits_per_byte", 1.31 if who == "base" else 1.24, 0.05, 14),
            ]
            for who in among
        },
        seconds=4.2,
    )


def code(among: tuple[Contestant, ...] = ("base", "tuned")) -> Section:
    return Section(
        name="code",
        asked=8,
        of=120,
        metrics={
            who: [
                value("codebleu", 0.18 if who == "base" else 0.31, 0.3, 8),
                value("edit_similarity", 0.22 if who == "base" else 0.38, 0.25, 8),
                of("compiles", 3 if who == "base" else 6, 8),
            ]
            for who in among
        },
        notes=["No encoder is there: the embedding similarity was not measured."],
        seconds=12.0,
    )


def humaneval() -> Section:
    return Section(
        name="humaneval",
        asked=100,
        of=164,
        metrics={
            who: [of("pass@1", 1 + (who == "tuned"), 100), of("pass@10", 4, 100)]
            for who in ("base", "tuned")
        },
        notes=[
            "Programs ran without network (namespace), at most 64 processes (pids cgroup), "
            "1 GiB and 10 s each."
        ],
        seconds=90.1,
    )


def speed(among: tuple[Contestant, ...] = ("base", "tuned")) -> Section:
    """Measured once: no interval."""
    return Section(
        name="speed",
        asked=1,
        of=1,
        metrics={
            who: [
                value("ms_per_token", 4.1 if who == "base" else 6.3, 0.0, 32),
                value("prompt_ms", 160.4, 0.0, 32),
            ]
            for who in among
        },
        notes=["One question of 412 tokens, 32 tokens of answer, on this machine."],
        seconds=1.1,
    )


def targets(*, coded: bool = True) -> list[Target]:
    compiling = of("compiles", 6, 8)
    return [
        target("right answers", "open_book", "answer_accuracy", of("answer_accuracy", 35, 48), 0.9),
        target(
            "hallucination", "open_book", "hallucination_rate", of("hallucination_rate", 18, 300),
            0.05, at_most=True,
        ),
        target("compiling", "code", "compiles", compiling if coded else None, 0.95),
        target(
            "speed", "speed", "ms_per_token",
            value("ms_per_token", 6.3, 0.0, 32), 200, at_most=True,
        ),
    ]  # fmt: skip


def target(
    name: str,
    section: SectionName,
    metric: str,
    measured: Metric | None,
    threshold: float,
    *,
    at_most: bool = False,
) -> Target:
    met = None
    if measured:
        met = measured.value <= threshold if at_most else measured.value >= threshold
    return Target(
        name=name,
        section=section,
        metric=metric,
        value=measured,
        threshold=threshold,
        at_most=at_most,
        met=met,
    )


def difference(name: str, at: float, low: float, high: float, n: int = 48) -> Metric:
    return Metric(name=name, value=at, low=low, high=high, n=n)


def beside_base() -> Comparison:
    return Comparison(
        against="base",
        differences=[
            difference("open_book.perplexity", 0.24, 0.21, 0.28, 128),
            difference("open_book.fact_perplexity", 0.80, 0.73, 0.88, 96),
            difference("open_book.answer_accuracy", 0.563, 0.39, 0.69),
            difference("open_book.hallucination_rate", -0.133, -0.19, -0.07),
            difference("closed_book.fact_perplexity", 0.156, 0.106, 0.212, 52),
            difference("closed_book.fact_choice", 0.192, 0.04, 0.33, 52),
            difference("closed_book.answer_accuracy", 0.156, -0.01, 0.3, 32),
        ],
        better=[
            "open_book.perplexity",
            "open_book.fact_perplexity",
            "open_book.answer_accuracy",
            "open_book.hallucination_rate",
            "closed_book.fact_perplexity",
            "closed_book.fact_choice",
        ],
        worse=[],
        reasons=[],
    )


def answered(**changed: Any) -> Answered:
    """One question with answers of all four, the tuned one right."""
    quote = "##begin_quote##raise TimeoutError(url)##end_quote##"
    fields: dict[str, Any] = {
        "id": "ex-0001",
        "section": "open_book",
        "kind": "raises",
        "difficulty": "easy",
        "question": "Which exceptions does `Client.get` raise?",
        "expected": "`TimeoutError`",
        "answers": {
            "base": scored(
                "The `Client` calls `fetch_all` and then `Retry`.\n<ANSWER>: `Retry`",
                right=False,
                unsupported=["`Retry`", "fetch_all", "Retry"],
            ),
            "base_retrieval": scored("<ANSWER>: `ValueError", right=False, stopped=False),
            "tuned": scored(f"`Client.get` says {quote}.\n<ANSWER>: `TimeoutError`"),
            "tuned_retrieval": scored(f"It says {quote}.\n<ANSWER>: `TimeoutError`"),
        },
    }
    return Answered.model_validate(fields | changed)


def scored(text: str, *, right: bool = True, **changed: Any) -> ScoredAnswer:
    fields: dict[str, Any] = {
        "text": text,
        "final_answer": text.partition("<ANSWER>:")[2].strip(),
        "right": right,
        "abstained": False,
        "stopped": True,
        "quotes": text.count("##begin_quote##"),
        "verified_quotes": text.count("##begin_quote##"),
        "claims": 3,
        "unsupported": [],
    }
    return ScoredAnswer.model_validate(fields | changed)


def wrong(number: int, **changed: Any) -> Answered:
    """A question that the tuned model answers with something that is nowhere."""
    text = "`open` takes ##begin_quote##def open(path, mode)##end_quote##.\n<ANSWER>: `mode=None`"
    tuned = scored(
        text, right=False, verified_quotes=0, unsupported=["`mode=None`", "def open(path, mode)"]
    )
    base = scored("The given documents do not say.", right=False, abstained=True)
    fields: dict[str, Any] = {
        "id": f"ex-wrong-{number}",
        "kind": ("signature", "default", "returns")[number % 3],
        "difficulty": "hard",
        "question": f"What is the default of `mode` in `open{number}`?",
        "expected": '`"r"`',
        "answers": {"base": base, "tuned": tuned},
    }
    return answered(**(fields | changed))


def answers() -> list[Answered]:
    return [
        *(answered(id=f"ex-{n}", kind=("raises", "returns")[n % 2]) for n in range(5)),
        *(wrong(n) for n in range(4)),
        wrong(9, section="closed_book", question="In new words: what does `f` return?"),
        answered(id="ex-closed", section="closed_book"),
    ]


def passed(**changed: Any) -> EvaluationReport:
    """A report that says: deploy. Four contestants, everything measured but HumanEval."""
    gains = {"perplexity": 76.0, "answer_accuracy": 337.5, "hallucination_rate": 68.4}
    fields: dict[str, Any] = {
        "model_name": "run-click-8-2-1-4be9",
        "base_model": "forge-nano",
        "deployed_model": None,
        "control_model": None,
        "training_date": "2026-11-23T22:13:41+00:00",
        "dataset": "ds-click-8-2-1-5507",
        "num_training_examples": 1477,
        "num_eval_examples": 180,
        "passed": True,
        "reasons": [],
        "targets": targets(),
        "comparisons": [beside_base()],
        "perplexity": 1.7,
        "codebleu_score": 0.31,
        "humaneval_pass_rate": None,
        "reconstruction_score": 0.38,
        "hallucination_rate": 0.06,
        "improvement_over_base": gains
        | {"closed_book.fact_perplexity": 84.4, "code.compiles": 100},
        "sections": [open_book(), closed_book(), text(), code(), speed()],
        "divergence": [
            Divergence(
                contestant=who,
                section="open_book",
                per_example=[middle * (1 + 0.9 * ((7 * n) % 11) / 11) for n in range(60)],
            )
            for who, middle in MIDDLES.items()
        ],
        "budget_note": "",
        "not_measured": [
            "HumanEval: no problems were given (judging.humaneval).",
            "The exported file: 'forge-mcp export' scores it by itself.",
        ],
        "settings": {"max_examples": 48, "seed": 17, "humaneval": "", "limits": {"cpu": 10}},
        "machine": {"system": "Linux x86_64", "cores": "2", "memory": "23.5 GiB"},
        "seconds": 131.4,
    }
    return EvaluationReport.model_validate(fields | changed)


def refused(**changed: Any) -> EvaluationReport:
    """A report that says: do not deploy, for two reasons, of a sampled evaluation."""
    reason = (
        "it is not better than the base (forge-nano) beyond the noise at reading held-out files: "
        "open-book fact perplexity × 1.065 (95%: 0.913 to 1.302, n=60)"
    )
    comparison = Comparison(
        against="base",
        differences=[
            difference("open_book.fact_perplexity", 1.065, 0.913, 1.302, 60),
            difference("open_book.answer_accuracy", -0.25, -0.6, 0.2, 8),
            difference("closed_book.fact_choice", -0.2, -0.35, -0.05, 52),
        ],
        better=[],
        worse=["closed_book.fact_choice"],
        reasons=[reason],
    )
    small = open_book(("base", "tuned")).model_copy(update={"asked": 8, "notes": []})
    small.metrics = {
        "base": [value("fact_perplexity", 1.92, 0.1, 60), of("answer_accuracy", 3, 8)],
        "tuned": [
            value("fact_perplexity", 2.04, 0.12, 60),
            of("answer_accuracy", 1, 8),
            of("hallucination_rate", 3, 11),
        ],
    }
    small.by_kind, small.by_difficulty = [], []
    fields: dict[str, Any] = {
        "passed": False,
        "reasons": [reason, "the deployed model cannot be compared, because its run is gone"],
        "comparisons": [comparison],
        "sections": [small],
        "targets": targets(coded=False)[2:3],
        "codebleu_score": None,
        "reconstruction_score": None,
        "divergence": [],
        "improvement_over_base": {"answer_accuracy": -66.7},
        "budget_note": "8 of 210 questions were asked, to keep to 1 minute.",
    }
    return passed(**(fields | changed))


def with_all_six() -> EvaluationReport:
    """Beside the model in use and a control, with HumanEval."""
    deployed = beside_base().model_copy(
        update={"against": "deployed", "better": [], "n_left_out": 1, "differences": []}
    )
    control = beside_base().model_copy(update={"against": "control", "n_left_out": 5})
    return passed(
        deployed_model="run-click-8-2-0-11aa",
        control_model="run-httpcore-1-0-9-77cd",
        comparisons=[beside_base(), deployed, control],
        sections=[
            open_book(SIX), closed_book(SIX), text(), code(), humaneval(),
            speed(("base", "tuned", "deployed")),
        ],
        humaneval_pass_rate=0.02,
    )  # fmt: skip


def hostile() -> tuple[EvaluationReport, list[Answered]]:
    """Whatever is free text holds markup; names are long."""
    section = open_book()
    section.notes = [HOSTILE]
    section.by_kind = groups({LONG: 9, HOSTILE: 9}, FOUR)
    report = passed(
        model_name=HOSTILE,
        base_model=LONG,
        dataset=HOSTILE,
        training_date=HOSTILE,
        sections=[section],
        budget_note=HOSTILE,
        not_measured=[HOSTILE],
        settings={HOSTILE: {"inner": HOSTILE}},
        machine={HOSTILE: LONG},
        passed=False,
        reasons=[HOSTILE, LONG],
    )
    rows = [
        answered(question=HOSTILE, expected=HOSTILE, kind=HOSTILE, difficulty=LONG),
        wrong(1, answers={"tuned": scored(HOSTILE, right=False, unsupported=[HOSTILE, "", LONG])}),
    ]
    return report, rows
