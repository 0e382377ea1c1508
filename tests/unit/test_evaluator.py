"""Perplexity against its definition, answers, intervals and the gate."""

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
from judging_cases import answer, contestant, make_block, make_case, make_dataset
from training_models import make_base

from forge_mcp import machine
from forge_mcp.errors import BadInput, CorruptArtifact
from forge_mcp.judging import perplexity as perplexity_module
from forge_mcp.judging.answers import (
    answer_metrics,
    evaluate_hallucination_rate,
    generate_answers,
    normalise,
    same_answer,
    score_answer,
)
from forge_mcp.judging.gate import compare, improvement
from forge_mcp.judging.heldout import Case, held_out, learnt_from, sample
from forge_mcp.judging.intervals import bootstrap, paired_difference, share
from forge_mcp.judging.perplexity import Perplexity, Scorer, compute_perplexity
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.prompt import quote, render_answer
from forge_mcp.training.batching import Example, encode_row
from forge_mcp.workspace import Workspace

mx = machine.mlx()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def loaded(base: Path) -> Any:
    from forge_mcp.training.bases import load_base

    return load_base(str(base))


def tokenised(cases: Sequence[Case], loaded: Any) -> list[Example]:
    return [encode_row(case.row, loaded.tokenizer) for case in cases]


# -- perplexity -------------------------------------------------------------------------------


def naive_nll(model: Any, example: Example) -> float:
    """The definition: all logits of the whole text at once, in float64."""
    logits = np.array(model(mx.array([example.tokens]))[0], dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    at = range(example.start, len(example.tokens))
    return -float(sum(logp[i - 1, example.tokens[i]] for i in at))


@pytest.mark.parametrize("step", [256, 7])
def test_perplexity_is_that_of_the_definition(
    loaded: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity_module, "SCORE_STEP", step)
    monkeypatch.setattr(perplexity_module, "PREFILL_STEP", 5 * step)
    cases = [make_case(n) for n in (3, 1, 2, 11)]
    examples = tokenised(cases, loaded)
    seen: list[tuple[int, int]] = []
    found = compute_perplexity(
        loaded.model,
        examples,
        [len(case.reference.encode()) for case in cases],
        lambda done, of: seen.append((done, of)),
    )
    expected = [naive_nll(loaded.model, example) for example in examples]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-5)
    tokens = sum(example.answer_tokens for example in examples)
    assert found.value == pytest.approx(math.exp(sum(expected) / tokens), rel=1e-5)
    measured = {metric.name: metric for metric in found.metrics(seed=1)}
    text = sum(len(case.reference.encode()) for case in cases)
    assert measured["bits_per_byte"].value == pytest.approx(
        sum(expected) / math.log(2) / text, rel=1e-5
    )
    assert all(metric.low <= metric.value <= metric.high for metric in measured.values())
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]


def test_a_shared_prompt_is_read_once_and_scores_the_same(loaded: Any) -> None:
    head = list(range(3, 60))
    examples = [Example([*head, *tail], len(head)) for tail in ([9, 8, 2], [7, 2], [9, 9, 9, 2])]
    scorer = Scorer(loaded.model)
    scores = [scorer.score(example) for example in examples]
    kept = scorer.cache
    assert scores == pytest.approx([naive_nll(loaded.model, e) for e in examples], rel=1e-5)
    scorer.score(Example([200, 201, 202, 2], 3))
    assert kept is not scorer.cache, "a prompt that shares nothing starts anew"


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(base: Path) -> None:
    from forge_mcp.training.bases import load_base

    model = load_base(str(base)).model
    model.model.norm.weight = mx.zeros_like(model.model.norm.weight)
    examples = [Example([5, 6, 7, 8, 2], 2), Example([9, 2], 1)]
    found = compute_perplexity(model, examples, [6, 1])
    assert found.value == pytest.approx(model.args.vocab_size, rel=1e-5)
    assert found.metrics(0)[1].value == pytest.approx(4 / 7 * math.log2(259), rel=1e-5)
    np.testing.assert_allclose(found.per_example, [259, 259], rtol=1e-5)


@pytest.mark.parametrize("examples", [[], [Example([1, 2], 0)], [Example([1, 2], 2)]])
def test_nothing_to_score_is_refused(loaded: Any, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="prompt and an answer"):
        compute_perplexity(loaded.model, examples, [1] * len(examples))


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
    made = [make_case(1), make_case(2, absent=True), make_case(3, split="train")]
    dataset = make_dataset(Workspace(tmp_path / "forge"), made)
    cases = held_out(dataset)
    assert cases == made[:2]
    assert [case.abstains for case in cases] == [False, True]
    assert [block.name for case in cases for block in case.documents] == ["f1", "f1002"]
    assert learnt_from(dataset) == {make_block(3).content_hash}


def test_rows_without_documents_are_not_held_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "forge")
    known = make_case(4)
    closed = known.example.model_copy(update={"closed_book": True})
    recalled = replace(known, example=closed, documents=())
    assert held_out(make_dataset(workspace, [make_case(1), recalled])) == [make_case(1)]
    with pytest.raises(BadInput, match=r"test split of .* is empty"):
        held_out(make_dataset(workspace, [recalled]))


def test_code_that_was_asked_for_was_learnt_though_it_was_not_shown(tmp_path: Path) -> None:
    case = make_case(5, split="train")
    fact = case.example.fact.model_copy(update={"kind": "code", "block": make_block(6).id})
    written = replace(
        case,
        example=case.example.model_copy(update={"fact": fact}),
        documents=(*case.documents, make_block(6)),
    )
    dataset = make_dataset(Workspace(tmp_path / "forge"), [written])
    assert learnt_from(dataset) == {make_block(5).content_hash, make_block(6).content_hash}


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


def test_a_reference_answer_scores_full_marks() -> None:
    for case in (make_case(7), make_case(8, absent=True)):
        scored = score_answer(case, case.reference, stopped=True)
        assert scored.right
        assert scored.unsupported_claims == 0
        assert scored.verified_quotes == scored.quotes == (0 if case.abstains else 1)
        assert scored.abstained is case.abstains


def test_inventions_are_counted() -> None:
    text = render_answer(
        f"`f7` calls `helper.run(x)` {quote('return x + 7')} {quote('return x - 7')}", "`None`"
    )
    scored = score_answer(make_case(7), text, stopped=False)
    assert (scored.quotes, scored.verified_quotes) == (2, 1)
    # f7, helper, run, x, None and two quotes; helper, run and one quote stand nowhere.
    assert (scored.claims, scored.unsupported_claims) == (7, 3)
    assert not scored.right
    rate = evaluate_hallucination_rate([scored])
    assert rate and rate.value == pytest.approx(3 / 7)
    assert evaluate_hallucination_rate([answer(claims=0)]) is None


def test_an_answer_without_its_marker_is_wrong() -> None:
    case = make_case(7)
    assert not score_answer(case, case.example.final_answer, stopped=True).right


@given(st.text(max_size=80))
def test_whatever_a_model_writes_can_be_scored(text: str) -> None:
    scored = score_answer(make_case(7), text, stopped=True)
    assert 0 <= scored.unsupported_claims <= scored.claims
    assert 0 <= scored.verified_quotes <= scored.quotes


def test_answer_metrics_count_what_they_say() -> None:
    cases = [make_case(1), make_case(2), make_case(3, absent=True), make_case(4, absent=True)]
    answers = [
        answer(right=True),
        answer(right=False, abstained=True, quotes=0, verified_quotes=0, claims=0),
        answer(right=True, abstained=True, quotes=0, verified_quotes=0, stopped=False),
        answer(right=False, quotes=3, verified_quotes=1, claims=4, unsupported_claims=2),
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


def test_batched_answers_are_those_given_one_by_one(loaded: Any) -> None:
    from mlx_lm import stream_generate

    cases = [make_case(n, absent=n % 2 == 0) for n in range(18)]
    examples = tokenised(cases, loaded)
    found = generate_answers(loaded.model, loaded.tokenizer, cases, examples, max_tokens=12)
    for number in (0, 1, 17):
        prompt = examples[number].tokens[: examples[number].start]
        parts = list(stream_generate(loaded.model, loaded.tokenizer, prompt, max_tokens=12))
        assert found[number].text == "".join(part.text for part in parts)
        assert found[number].stopped is (parts[-1].finish_reason == "stop")


# -- gate -------------------------------------------------------------------------------------


def test_a_model_is_not_worse_than_itself() -> None:
    tuned, other = (contestant(r, [9, 30, 12], [True, False]) for r in ("tuned", "base"))
    found = compare(tuned, other, 1.0, seed=3)
    assert found.reasons == []
    ratio = found.perplexity_ratio
    assert ratio and (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_a_perplexity_above_the_limit_is_refused_in_words() -> None:
    tuned = contestant("tuned", [10.2, 30.2], [True])
    other = contestant("base", [10, 30], [True])
    (reason,) = compare(tuned, other, 1.0, seed=3).reasons
    assert "perplexity is 1.020 times that of the base (model-base)" in reason
    assert compare(tuned, other, 1.03, seed=3).reasons == []


def test_fewer_right_answers_are_refused_only_beyond_the_noise() -> None:
    other = contestant("deployed", [10], [True] * 20)
    (reason,) = compare(contestant("tuned", [9], [False] * 20), other, 1.0, seed=3).reasons
    assert "100.0 points below that of the deployed" in reason
    slightly = contestant("tuned", [9], [True] * 18 + [False] * 2)
    assert compare(slightly, other, 1.0, seed=3).reasons == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_is_refused_whatever_the_limit(bad: float) -> None:
    tuned, other = contestant("tuned", [9, bad], [True]), contestant("base", [9, 9], [True])
    found = compare(tuned, other, 1e9, seed=3)
    assert found.perplexity_ratio is None
    assert "perplexity of tuned is not finite on 1 of 2" in found.reasons[0]
    assert "perplexity" not in {metric.name for metric in tuned.metrics(3)}


def test_the_ratio_is_the_quotient_where_tokens_are_the_same() -> None:
    a = Perplexity(np.array([3.0, 9.0]), np.array([4.0, 5.0]), np.array([8.0, 9.0]))
    b = Perplexity(np.array([6.0, 8.0]), np.array([4.0, 5.0]), np.array([8.0, 9.0]))
    assert a.ratio_to(b, 1).value == pytest.approx(a.value / b.value)


def test_improvement_knows_which_way_is_better() -> None:
    def metrics(**values: float) -> list[Metric]:
        return [Metric(name=k, value=v, low=v, high=v, n=1) for k, v in values.items()]

    assert improvement(
        metrics(perplexity=4, answer_accuracy=0.5, citation_recall=0),
        metrics(perplexity=3, answer_accuracy=0.75, citation_recall=1, stopped_at_eos=1),
    ) == pytest.approx({"perplexity": 25, "answer_accuracy": 50})
