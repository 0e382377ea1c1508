"""Intervals, the questions of an examination, and how answers and facts are scored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_cases import answer, make_block, make_case, make_closed, make_dataset
from training_models import make_base

from forge_mcp.errors import BadInput, CorruptArtifact
from forge_mcp.judging import knowledge
from forge_mcp.judging.answers import (
    MlxBackend,
    Reply,
    Repository,
    RuntimeBackend,
    answer_metrics,
    evaluate_hallucination_rate,
    normalise,
    same_answer,
    score_answer,
    score_answers,
)
from forge_mcp.judging.heldout import Case, Examination, held_out, learnt_from, sample
from forge_mcp.judging.intervals import bootstrap, paired_difference, share
from forge_mcp.judging.knowledge import measure, questions
from forge_mcp.schemas.prompt import quote, render_answer
from forge_mcp.training.batching import Example
from forge_mcp.workspace import Workspace


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def loaded(base: Path) -> Any:
    from forge_mcp.training.bases import load_base

    return load_base(str(base))


# -- intervals --------------------------------------------------------------------------------


def test_wilson_interval_of_known_shares() -> None:
    whole = share("s", 10, 10)
    assert whole and (whole.value, whole.high) == (1, 1)
    assert whole.low == pytest.approx(0.7225, abs=1e-4)
    some = share("s", 81, 263)  # Newcombe (1998), table II
    assert some and (some.low, some.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert share("s", 0, 0) is None


def test_wilson_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    for p in (0.1, 0.5, 0.95):
        intervals = [share("s", int(k), 40) for k in rng.binomial(40, p, 800)]
        assert np.mean([m.low <= p <= m.high for m in intervals if m]) > 0.92


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_difference_holds_its_value_and_mirrors(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference("d", first, second), paired_difference("d", second, first)
    assert there.value == pytest.approx(np.mean(second) - np.mean(first))
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_one_lost_answer_is_noise_and_ten_are_not() -> None:
    assert paired_difference("d", [True], [False]).high > 0
    assert paired_difference("d", [True] * 48, [True] * 47 + [False]).high > 0
    assert paired_difference("d", [True] * 48, [True] * 38 + [False] * 10).high < 0
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference("d", [True], [])


def test_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5, 1, 400)
    found = bootstrap("m", 400, 3, lambda i: values[i].mean(axis=1))
    assert found == bootstrap("m", 400, 3, lambda i: values[i].mean(axis=1))
    half = 1.96 * values.std() / 20
    assert found.value - found.low == pytest.approx(half, rel=0.15)
    assert found.high - found.value == pytest.approx(half, rel=0.15)


# -- held-out examples ------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_a_sample_is_ordered_nested_and_representative(count: int, n: int, seed: int) -> None:
    cases = [make_case(number, absent=number % 5 == 0) for number in range(count)]
    chosen = sample(cases, n, seed)
    assert chosen == sample(cases, n, seed)
    ids = [case.example.id for case in chosen]
    assert ids == [case.example.id for case in cases if case.example.id in set(ids)]
    assert len(ids) == min(n, count)
    assert set(ids) <= {case.example.id for case in sample(cases, n + 3, seed)}

    def strata(some: Sequence[Case]) -> Counter[tuple[str, str, bool]]:
        return Counter(
            (c.example.fact.kind, c.example.difficulty, c.example.oracle_absent) for c in some
        )

    expected = strata(cases)
    for key, found in strata(chosen).items():
        # The threshold that cuts all strata at one place lies near n / count.
        assert abs(found - expected[key] * len(ids) / count) < 2.5


def test_held_out_cases_carry_what_was_shown(tmp_path: Path) -> None:
    made = [make_case(1), make_case(2, absent=True), make_case(3, split="train"), make_closed(3)]
    dataset = make_dataset(Workspace(tmp_path / "forge"), made)
    cases = held_out(dataset)
    assert cases == Examination(open_book=made[:2], closed_book=made[3:])
    assert [case.abstains for case in cases.open_book] == [False, True]
    assert [case.cites for case in (*cases.open_book, *cases.closed_book)] == [True, False, False]
    assert [b.name for case in cases.open_book for b in case.documents] == ["f1", "f1002"]
    learnt = learnt_from(dataset)
    assert learnt.blocks == {make_block(3).content_hash}
    assert learnt.questions == {made[2].prompt}
    assert learnt.answers == {"signature": ["`x + 3`"]}


def test_what_was_trained_on_is_known_by_its_words_and_by_its_code(tmp_path: Path) -> None:
    learnt = learnt_from(
        make_dataset(Workspace(tmp_path / "forge"), [make_case(3, split="train"), make_case(9)])
    )
    assert learnt.holds(make_case(3)), "the same row"
    other_words = make_case(3).with_documents([make_block(77)])
    assert learnt.holds(other_words), "another row about the same code"
    assert not learnt.holds(make_case(4))
    assert not learnt.holds(make_closed(3)), "about trained code by intent"
    assert learnt.knows(make_closed(3))
    assert not learnt.knows(make_closed(4))
    trained = make_closed(3, split="train")
    learnt = learnt_from(make_dataset(Workspace(tmp_path / "b"), [trained, make_case(9)]))
    assert learnt.holds(make_closed(3)), "that very question was trained on"


def test_code_that_was_asked_for_was_learnt_though_it_was_not_shown(tmp_path: Path) -> None:
    case = make_case(5, split="train")
    fact = case.example.fact.model_copy(update={"kind": "code", "block": make_block(6).id})
    written = replace(
        case,
        example=case.example.model_copy(update={"fact": fact}),
        documents=(*case.documents, make_block(6)),
    )
    dataset = make_dataset(Workspace(tmp_path / "forge"), [written])
    hashes = {make_block(5).content_hash, make_block(6).content_hash}
    assert learnt_from(dataset).blocks == hashes


def test_a_split_of_closed_book_questions_alone_is_empty(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"test split of .* is empty"):
        held_out(make_dataset(Workspace(tmp_path / "forge"), [make_closed(4)]))


def test_other_documents_change_the_prompt_and_nothing_else() -> None:
    case = make_closed(5)
    found = case.with_documents([make_block(5), make_block(6)])
    assert [message.role for message in found.row.messages] == ["system", "user", "assistant"]
    assert found.prompt.count("<DOCUMENT>") == 2
    assert found.prompt.endswith(case.prompt)
    assert found.reference == case.reference
    assert found.documents == (make_block(5), make_block(6))


def test_an_empty_split_and_one_that_does_not_belong_are_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "forge")
    with pytest.raises(BadInput, match=r"test split of .* is empty"):
        held_out(make_dataset(workspace, [make_case(1, split="train")]))
    broken = make_dataset(workspace, [make_case(1), make_case(2)])
    (broken.path / "test.jsonl").write_text(make_case(1).row.model_dump_json() + "\n")
    with pytest.raises(CorruptArtifact, match=r"test\.jsonl"):
        held_out(broken)


# -- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "expected", "same"),
    [
        ("`x`", " x. ", True),
        ("a  b\nc", "a b c", True),
        ("Foo", "foo", False),
        ("x", "y", False),
        ("e\u0301", "\u00e9", True),
        ("`a`, `b`", "`b`, `a`", False),
    ],
)
def test_final_answers_are_compared_by_what_they_say(
    given_: str, expected: str, same: bool
) -> None:
    assert same_answer("signature", given_, expected) is same


@pytest.mark.parametrize(
    ("given_", "same"),
    [("`b`, `a`", True), ("`a`", False), ("`a`, `a`", False), ("not `b`, `a`", False)],
)
def test_lists_without_an_order_may_come_in_any(given_: str, same: bool) -> None:
    assert same_answer("raises", given_, "`a`, `b`") is same


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


REPOSITORY = Repository(make_block(number) for number in (7, 1007, 8, 1008))


def test_a_reference_answer_scores_full_marks() -> None:
    for case in (make_case(7), make_case(8, absent=True)):
        scored = score_answer(case, case.reference, True, REPOSITORY)
        assert scored.right
        assert scored.unsupported == []
        assert scored.verified_quotes == scored.quotes == (0 if case.abstains else 1)
        assert scored.abstained is case.abstains


def test_inventions_are_counted() -> None:
    text = render_answer(
        f"`f7` calls `helper.run(x)` {quote('return x + 7')} {quote('return x - 7')}", "`None`"
    )
    scored = score_answer(make_case(7), text, False, REPOSITORY)
    assert (scored.quotes, scored.verified_quotes) == (2, 1)
    # The stated fact, f7, helper, run, x, None and two quotes.
    assert scored.claims == 8
    assert scored.unsupported == ["`None`", "return x - 7", "helper", "run"]
    assert not scored.right
    rate = evaluate_hallucination_rate([scored])
    assert rate and rate.value == pytest.approx(4 / 8)
    assert evaluate_hallucination_rate([answer(claims=0)]) is None


def test_what_the_repository_holds_is_no_invention_though_it_was_not_shown() -> None:
    text = render_answer(f"`f1008` is like it: {quote('return x + 1008')}", "`x + 7`")
    scored = score_answer(make_case(7), text, True, REPOSITORY)
    assert scored.unsupported == []
    assert (scored.quotes, scored.verified_quotes) == (1, 0), "yet nothing given holds the quote"
    alone = score_answer(make_case(7), text, True, Repository([]))
    assert alone.unsupported == ["return x + 1008", "f1008"]


def test_a_true_statement_in_another_form_is_no_invention() -> None:
    source = "def f(a, b):\n    if a:\n        return b\n    return a\n"
    block = make_block(7).model_copy(update={"source_code": source, "name": "f"})
    case = make_case(7)
    fact = case.example.fact.model_copy(update={"kind": "parameters", "value": "`a`, `b`"})
    example = case.example.model_copy(update={"fact": fact, "final_answer": "`a`, `b`"})
    case = replace(case, example=example, documents=(block,), oracles=(block,))
    repository = Repository([block])

    def unsupported(final: str) -> list[str]:
        return score_answer(case, render_answer("So.", final), True, repository).unsupported

    assert unsupported("`a`, `b`") == []
    assert unsupported("It takes `a` and `b`") == []
    assert unsupported("`b`, `a`") == ["`b`, `a`"]
    assert unsupported("`a`") == ["`a`"]
    assert unsupported("nothing") == ["nothing"]


def test_an_answer_in_a_sentence_is_no_fact_that_could_be_derived() -> None:
    case = make_case(7)
    fact = case.example.fact.model_copy(update={"kind": "purpose", "value": "Adds seven."})
    case = replace(case, example=case.example.model_copy(update={"fact": fact}))
    scored = score_answer(case, render_answer("So.", "Takes `zeal` away."), True, REPOSITORY)
    assert scored.unsupported == ["zeal"]
    assert scored.claims == 1


def test_an_answer_without_its_marker_is_wrong() -> None:
    case = make_case(7)
    assert not score_answer(case, case.example.final_answer, True, REPOSITORY).right


@given(st.text(max_size=80))
def test_whatever_a_model_writes_can_be_scored(text: str) -> None:
    scored = score_answer(make_case(7), text, True, REPOSITORY)
    assert 0 <= len(scored.unsupported) <= scored.claims
    assert 0 <= scored.verified_quotes <= scored.quotes


def test_answer_metrics_count_what_they_say() -> None:
    cases = [make_case(1), make_case(2), make_case(3, absent=True), make_case(4, absent=True)]
    answers = [
        answer(right=True),
        answer(right=False, abstained=True, quotes=0, verified_quotes=0, claims=0),
        answer(right=True, abstained=True, quotes=0, verified_quotes=0, stopped=False),
        answer(right=False, quotes=3, verified_quotes=1, claims=4, unsupported=["a", "b"]),
    ]
    found = {m.name: (m.value, m.n) for m in answer_metrics(cases, answers)}
    assert found == {
        "answer_accuracy": (0.5, 4),
        "citation_precision": (0.5, 4),
        "citation_recall": (0.5, 2),
        "abstention_accuracy": (0.5, 2),
        "false_abstention_rate": (0.5, 2),
        "hallucination_rate": (0.25, 8),
        "stopped_at_eos": (0.75, 4),
    }


def test_a_model_in_mlx_and_a_runtime_are_scored_alike(loaded: Any) -> None:
    cases = [make_case(n, absent=n % 2 == 0) for n in range(6)]
    backend = MlxBackend(loaded.model, loaded.tokenizer, 512)
    told: list[tuple[int, int]] = []
    found = score_answers(backend, cases, REPOSITORY, 12, lambda *done: told.append(done))
    assert told[-1] == (6, 6)

    class Runtime:
        def answer(self, messages: Any, max_tokens: int) -> Reply:
            (reply,) = backend.answer_all([messages], max_tokens)
            return reply

    told.clear()
    again = score_answers(
        RuntimeBackend(Runtime()), cases, REPOSITORY, 12, lambda *done: told.append(done)
    )
    assert again == found
    assert told == [(n, 6) for n in range(1, 7)]
    assert {answer.text for answer in found} != {""}


# -- facts ------------------------------------------------------------------------------------


def test_fact_tokens_are_the_words_of_the_final_answer(loaded: Any) -> None:
    (asked,) = questions([make_case(7)], loaded.tokenizer, {"signature": ["`a`", "`b`"]}, 1)
    answer_tokens = asked.example.tokens[asked.example.start :]
    marked = [t for t, of_fact in zip(answer_tokens, asked.fact, strict=True) if of_fact]
    assert loaded.tokenizer.decode(marked) == "x7", "neither marks, nor signs, nor the end"
    assert asked.others == [], "two are too few to choose among"
    (absent,) = questions([make_case(8, absent=True)], loaded.tokenizer, {}, 1)
    assert not any(absent.fact)


def test_a_fact_is_known_where_it_is_likelier_than_others(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = {kind: [f"`x + {n}`" for n in range(30)] for kind in ("returns", "signature")}
    cases = [make_case(n) for n in range(12)] + [make_case(50, absent=True)]
    asked = questions(cases, loaded.tokenizer, pool, 1)
    assert [len(one.others) for one in asked] == [3] * 12 + [0]
    assert asked == questions(cases, loaded.tokenizer, pool, 1)
    truths = [case.example.final_answer for case in cases]
    for one, truth in zip(asked[:12], truths, strict=False):
        written = [loaded.tokenizer.decode(example.tokens) for example, _ in one.others]
        assert not any(f"{truth}<|im_end|>" in text for text in written)

    class Knowing:
        """The true answers' tokens are likely, all others are not."""

        def __init__(self) -> None:
            self.truth: set[tuple[int, ...]] = {tuple(one.example.tokens) for one in asked}

    def scored(model: Any, rows: Sequence[Example], **_: Any) -> list[Any]:
        return [
            np.full(row.answer_tokens, 0.1 if tuple(row.tokens) in model.truth else 2.0)
            for row in rows
        ]

    with monkeypatch.context() as patched:
        patched.setattr(knowledge, "token_nll", scored)
        found = measure(Knowing(), asked, 512)
    metrics = {metric.name: metric for metric in found.metrics(1)}
    assert metrics["fact_choice"].value == 1
    assert metrics["fact_choice"].n == 12
    assert metrics["fact_perplexity"].value == pytest.approx(math.exp(0.1))
    assert found.fact_ids == [case.example.id for case in cases[:12]]
    real = measure(loaded.model, asked, 512)
    assert {m.name for m in real.metrics(1)} == set(metrics)
    assert real.metrics(1)[0].value > 100, "random weights"
