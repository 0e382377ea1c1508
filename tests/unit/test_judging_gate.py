"""The gate, and how much is examined within a budget."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging_cases import make_paper

from forge_mcp.judging.gate import compare, improvement, metric_key
from forge_mcp.judging.perplexity import Perplexity
from forge_mcp.judging.report import Subject, build_report
from forge_mcp.judging.schedule import (
    FEWEST,
    UNITS,
    Clock,
    Sizes,
    fit,
    rates_from,
    seconds_needed,
)
from forge_mcp.judging.sitting import Evaluation
from forge_mcp.schemas.base import Metric
from forge_mcp.settings import load_settings

N = 20
WORSE = [10.0 + n % 5 for n in range(N)]
BETTER = [nll - 2 for nll in WORSE]
SIZES = Sizes(128, 100, 48, 32, 8192, 8, 0)
MODELS = {**dict.fromkeys(UNITS, 2), "programs": 0}


def names(found: Any) -> set[str]:
    return {metric.name for metric in found.differences}


def test_a_model_is_neither_better_nor_worse_than_itself() -> None:
    tuned, other = (make_paper(r, WORSE, [True, False] * 10) for r in ("tuned", "base"))
    found = compare(tuned, other, 1.0, seed=3)
    assert (found.better, found.worse) == ([], [])
    assert names(found) == {
        f"open_book.{name}"
        for name in ("perplexity", "fact_perplexity", "answer_accuracy", "hallucination_rate")
    }
    for metric in found.differences:
        assert metric.value == (1 if "perplexity" in metric.name else 0)
        assert metric.n == N
    (reason,) = found.reasons
    assert "not better than the base (model-base) beyond the noise at reading" in reason
    assert "open-book fact perplexity × 1.000 (95%: 1.000 to 1.000, n=20)" in reason
    assert "open-book answer accuracy +0.0 points" in reason


def test_facts_that_became_likelier_are_enough_and_so_are_right_answers() -> None:
    base = make_paper("base", WORSE, [False] * N)
    found = compare(make_paper("tuned", BETTER, [False] * N), base, 1.0, seed=3)
    assert found.reasons == []
    assert "open_book.fact_perplexity" in found.better
    found = compare(make_paper("tuned", WORSE, [True] * N), base, 1.0, seed=3)
    assert found.reasons == []
    assert found.better == ["open_book.answer_accuracy"]


def test_a_likelier_form_of_answers_is_not_enough() -> None:
    """The words around the facts are what any training gives, one on false answers too."""
    base, tuned = make_paper("base", WORSE, []), make_paper("tuned", WORSE, [])
    tuned.likelihood["open_book"].answers.nll[:] = 1.0
    found = compare(tuned, base, 1.0, seed=3)
    assert found.better == ["open_book.perplexity"]
    assert "not better than the base" in found.reasons[0]


def test_a_gain_within_the_noise_is_not_enough() -> None:
    mixed = [nll + (5 if n % 2 else -5.2) for n, nll in enumerate(WORSE)]
    found = compare(make_paper("tuned", mixed, []), make_paper("base", WORSE, []), 1.0, seed=3)
    (ratio,) = [m for m in found.differences if m.name == "open_book.fact_perplexity"]
    assert ratio.low < ratio.value < 1 < ratio.high
    assert found.reasons


def test_the_limit_can_be_loosened_and_made_stricter() -> None:
    base, tuned = make_paper("base", WORSE, []), make_paper("tuned", WORSE, [])
    assert compare(tuned, base, 1.1, seed=3).reasons == []
    gained = make_paper("tuned", BETTER, [])
    assert compare(gained, base, 1.0, seed=3).reasons == []
    assert compare(gained, base, 0.5, seed=3).reasons


@pytest.mark.parametrize("role", ["base", "deployed"])
def test_fewer_right_answers_are_refused_beyond_the_noise(role: Any) -> None:
    other = make_paper(role, WORSE, [True] * N)
    (reason,) = compare(make_paper("tuned", BETTER, [False] * N), other, 1.0, seed=3).reasons
    assert f"worse than the {role} (model-{role})" in reason
    assert "open-book answer accuracy -100.0 points (95%: " in reason
    slightly = make_paper("tuned", BETTER, [True] * 18 + [False] * 2)
    assert compare(slightly, other, 1.0, seed=3).reasons == []


def test_what_is_deployed_need_not_be_surpassed_but_must_not_be_missed() -> None:
    deployed = make_paper("deployed", WORSE, [True] * N)
    assert compare(make_paper("tuned", WORSE, [True] * N), deployed, 1.0, seed=3).reasons == []
    worse = make_paper("tuned", [nll + 2 for nll in WORSE], [True] * N)
    (reason,) = compare(worse, deployed, 1.0, seed=3).reasons
    assert "open-book fact perplexity × 1.284" in reason
    inventing = make_paper("tuned", WORSE, [True] * N, unsupported=["a"])
    (reason,) = compare(inventing, deployed, 1.0, seed=3).reasons
    assert "open-book hallucination rate +50.0 points" in reason
    base = make_paper("base", WORSE, [False] * N)
    assert compare(inventing, base, 1.0, seed=3).reasons == []


def test_lost_knowledge_is_refused() -> None:
    def with_closed(role: Any, chosen: list[bool]) -> Any:
        paper = make_paper(role, WORSE if role == "base" else BETTER, [])
        closed = make_paper(role, WORSE, [], "closed_book", chosen)
        paper.likelihood |= closed.likelihood
        return paper

    base = with_closed("base", [True] * N)
    assert compare(with_closed("tuned", [True] * N), base, 1.0, seed=3).reasons == []
    (reason,) = compare(with_closed("tuned", [False] * N), base, 1.0, seed=3).reasons
    assert "closed-book fact choice -100.0 points" in reason


def test_a_control_must_know_less() -> None:
    control = make_paper("control", WORSE, [True] * N, "closed_book")
    found = compare(make_paper("tuned", BETTER, [False] * N, "closed_book"), control, 1.0, 3)
    assert found.reasons == []
    (reason,) = compare(make_paper("tuned", WORSE, [], "closed_book"), control, 1.0, 3).reasons
    assert "does not know this repository better than the control" in reason
    (reason,) = compare(make_paper("tuned", BETTER, []), control, 1.0, 3).reasons
    assert "no question could be compared" in reason


def test_only_what_both_were_asked_is_compared() -> None:
    tuned, other = make_paper("tuned", BETTER, [True] * N), make_paper("base", WORSE[:9], [True])
    found = {m.name: m.n for m in compare(tuned, other, 1.0, 3).differences}
    assert found["open_book.fact_perplexity"] == 9
    assert found["open_book.answer_accuracy"] == 1
    ids = frozenset({"e0", "e1"})
    fair = compare(tuned, other, 1.0, 3, left_out=ids)
    assert fair.n_left_out == 2
    assert {m.name: m.n for m in fair.differences} == {
        "open_book.perplexity": 7,
        "open_book.fact_perplexity": 7,
    }
    nothing = compare(tuned, make_paper("base", [], []), 1.0, 3)
    assert nothing.differences == []
    assert "no question could be compared" in nothing.reasons[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_is_refused_whatever_the_limit(bad: float) -> None:
    tuned, other = make_paper("tuned", [9, bad], [True]), make_paper("base", [9, 9], [True])
    found = compare(tuned, other, 1e9, seed=3)
    assert "open_book.perplexity" not in names(found)
    assert found.reasons == ["the perplexity of tuned is not finite on 1 questions"]
    assert "perplexity" not in {metric.name for metric in tuned.metrics("open_book", 3)}


def test_the_ratio_is_the_quotient_where_tokens_are_the_same() -> None:
    a = Perplexity(np.array([3.0, 9.0]), np.array([4.0, 5.0]), np.array([8.0, 9.0]))
    b = Perplexity(np.array([6.0, 8.0]), np.array([4.0, 5.0]), np.array([8.0, 9.0]))
    assert a.ratio_to(b, 1).value == pytest.approx(a.value / b.value)


def test_improvement_knows_which_way_is_better() -> None:
    def metrics(**values: float) -> list[Metric]:
        return [Metric(name=k, value=v, low=v, high=v, n=1) for k, v in values.items()]

    before = metrics(perplexity=4, answer_accuracy=0.5, citation_recall=0)
    after = metrics(perplexity=3, answer_accuracy=0.75, citation_recall=1, stopped_at_eos=1)
    assert improvement(
        {"open_book": before, "text": metrics(perplexity=4)},
        {"open_book": after, "text": metrics(perplexity=5), "code": metrics(compiles=1)},
    ) == pytest.approx({"perplexity": 25, "answer_accuracy": 50, "text.perplexity": -25})
    assert metric_key("closed_book", "x") == "closed_book.x"


def test_a_diverged_model_has_a_report_too() -> None:
    papers = {
        "base": make_paper("base", [9, 9], []),
        "tuned": make_paper("tuned", [9, math.inf], []),
    }
    judging = load_settings().judging
    evaluation = Evaluation(
        papers=papers,  # type: ignore[arg-type]
        comparisons=[compare(papers["tuned"], papers["base"], 1.0, 3)],
        base_name="nano",
        asked={"open_book": 2},
        of={"open_book": 2},
        notes={},
        seconds={"open_book": 1.0},
        budget_note="",
    )
    subject = Subject("run-a", None, None, "today", "ds-a", 5)
    report = build_report(evaluation, subject, judging, ["one more"], {}, {}, 2.0)
    assert report.reasons == ["the perplexity of tuned is not finite on 1 questions", "one more"]
    assert [one.per_example for one in report.divergence] == [
        [pytest.approx(math.exp(0.9))] * 2,
        [pytest.approx(math.exp(0.9)), None],
    ]
    assert report.perplexity is None
    assert set(report.sections[0].metrics) == {"base"}
    text = json.dumps(report.model_dump(mode="json"), allow_nan=False)
    assert type(report).model_validate_json(text) == report


# -- the budget -------------------------------------------------------------------------------


@given(st.floats(1, 3600), st.floats(0.01, 3))
def test_a_budget_is_kept_where_the_fewest_questions_allow_it(seconds: float, each: float) -> None:
    rates = rates_from({"scored_open": each})
    sizes, note = fit(SIZES, rates, MODELS, seconds)
    needed = seconds_needed(sizes, rates, MODELS)
    if sizes == SIZES:
        assert note == "" or "Even" in note
        assert needed <= seconds or note
    else:
        assert "every part was cut" in note
    assert needed <= seconds or "Even the fewest" in note
    for name, wanted in vars(SIZES).items():
        assert min(wanted, 1) <= getattr(sizes, name) <= wanted
        if name.startswith(("scored", "answered")):
            assert getattr(sizes, name) >= FEWEST


def test_rates_of_what_was_not_tried_follow_those_that_were() -> None:
    rates = rates_from({"scored_open": 8.0, "answered_closed": 6.0})
    assert rates["scored_open"] == 8
    assert rates["answered_retrieval"] == pytest.approx(2 * UNITS["answered_retrieval"])


def test_the_clock_counts_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("forge_mcp.judging.schedule.time.monotonic", lambda: now[0])
    told: list[tuple[float, float, float | None, str]] = []
    clock = Clock(lambda *one: told.append(one))
    sizes = Sizes(10, 0, 5, 0, 0, 0, 0)
    clock.expect(sizes, MODELS)
    total = 2 * (10 * UNITS["scored_open"] + 5 * UNITS["answered_open"])
    for model in ("a", "b"):
        watch = clock.watch("scored_open", f"{model}: scored", 10)
        now[0] += 10 * UNITS["scored_open"]
        watch(20, 40)
        watch(40, 40)
        watch = clock.watch("answered_open", f"{model}: answered", 5)
        now[0] += 5 * UNITS["answered_open"]
        watch(5, 5)
    done, of, left, message = told[-1]
    assert (done, of, left, message) == (total, total, 0, "b: answered 5/5")
    assert [one[0] for one in told] == sorted(one[0] for one in told)
    assert told[2][2] == pytest.approx(total / 2), "half is done, so as long again"


def test_the_settings_say_how_much_is_wanted() -> None:
    judging = load_settings().judging
    sizes = Sizes.wanted(judging, programs=3)
    assert sizes.answered_open == judging.max_examples
    assert sizes.answered_closed == judging.closed_book_examples
    assert sizes.programs == 3
