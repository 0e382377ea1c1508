"""The gate for what teachers write: facts that rest on a quote, questions, other words, rows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of
from teacher_cases import ADD, GOOD, add_block, ground, shop, subject

from forge_mcp.raft.authored import Ground
from forge_mcp.raft.explained import also_explains, check_explained, supports
from forge_mcp.raft.pairs import also_answers
from forge_mcp.raft.verify import check
from forge_mcp.raft.written import ADVICE, REPHRASED, Gate, Refusal, Subject, Written
from forge_mcp.schemas.prompt import find_quote, parse_answer, quote, render_answer
from forge_mcp.schemas.raft_examples import Fact, RaftExample
from forge_mcp.settings import load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("FORGE_"):
            monkeypatch.delenv(name)


# -- explained facts --------------------------------------------------------------------------


def test_an_explanation_rests_on_a_verbatim_part_of_its_block() -> None:
    block, other = add_block(), next(b for b in blocks_of(SHOP) if b.name == "parse_price")
    fact = Fact(kind="explained", block=ADD, value="self.check_room(count)", subject="why")
    assert check_explained(fact, [block])
    assert check(fact, [block]), "the one check knows the kind"
    changed = [{"value": "self.check_room(counts)"}, {"block": other.id}, {"subject": "who"},
               {"value": "count"}, {"kind": "purpose"}]  # fmt: skip
    for change in changed:
        assert not check_explained(fact.model_copy(update=change), [block]), change
    assert not check_explained(fact, [other])
    assert not check_explained(fact, [block, other])
    assert not check_explained(fact, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("self.check_room(count)", ""),
        ("self.check_rooms(count)", "no verbatim part"),
        ("count < 1", "too short"),
        ("   , 1, 2, 3, 4, 5 ", "too short"),
        ("price = 10\n" * 7, "longer than"),
        ("abc" * 200, "longer than"),
    ],
)
def test_what_can_support_an_explanation(text: str, problem: str) -> None:
    source = add_block().source_code + "\n" + "price = 10\n" * 7 + "abc" * 200
    source += "   , 1, 2, 3, 4, 5 "
    block = add_block().model_copy(update={"source_code": source})
    assert problem in supports(text, block)
    assert bool(problem) == bool(supports(text, block))


def test_a_distractor_that_holds_the_quoted_code_answers_too() -> None:
    fact = Fact(kind="explained", block=ADD, value="self.check_room(count)", subject="why")
    other = next(b for b in blocks_of(SHOP) if b.name == "parse_price")
    assert not also_explains(fact, other)
    assert not also_answers(fact, [add_block()], other)
    spaced = other.source_code + "\n    self . check_room( count )\n"
    copy = other.model_copy(update={"source_code": spaced})
    assert also_explains(fact, copy)
    assert also_answers(fact, [add_block()], copy)


# -- the gate: new questions ------------------------------------------------------------------


def test_a_good_example_passes_and_cites_its_support() -> None:
    draft = Gate([]).new_example(GOOD, subject())
    assert not isinstance(draft, Refusal)
    assert draft.fact == Fact(kind="explained", block=ADD, value=GOOD.quote, subject="why")
    parsed = parse_answer(render_answer(draft.reasoning, draft.answer))
    assert parsed.quotes == [GOOD.quote] and parsed.final_answer == GOOD.answer
    assert find_quote(parsed.quotes[0], [add_block()])
    assert check(draft.fact, [add_block()])


def test_a_reasoning_that_cites_is_left_as_it_is() -> None:
    reasoning = f"First comes {quote('self.check_room(count)')}, then the items are extended."
    for given_quote in ("", "self.check_room(count)"):
        written = replace(GOOD, quote=given_quote, reasoning=reasoning)
        draft = Gate([]).new_example(written, subject())
        assert not isinstance(draft, Refusal)
        assert draft.reasoning == reasoning
        assert draft.fact.value == "self.check_room(count)"


def test_a_module_is_named_by_its_path() -> None:
    source = '"""The shop."""\n\nLIMIT = 20\nNAMES = {}\n'
    module = add_block().model_copy(
        update={
            "block_type": "module", "path": "shop/base.py", "name": "base",
            "qualified_name": "base", "source_code": source, "id": "shop/base.py",
        }
    )  # fmt: skip
    written = Written(
        "how",
        "How does `shop/base.py` keep the names?",
        "NAMES = {}",
        "The file binds `NAMES` to an empty dictionary.",
        "It keeps the names in a dictionary that is empty at first.",
    )
    draft = Gate([]).new_example(written, Subject(module, ambiguous=False))
    assert not isinstance(draft, Refusal)
    assert draft.reasoning.startswith("In shop/base.py, the file has ##begin_quote##NAMES")


REFUSED: dict[str, dict[str, str]] = {
    "unknown_kind": {"kind": "gossip"},
    "question_form": {"question": "Tell me of `Cart.add`."},
    "question_form 2": {"question": "Why does `Cart.add`\ncheck the room?"},
    "question_form 3": {"question": "`Cart.add`?"},
    "question_form 4": {"question": f"Why does `Cart.add` {'really ' * 50}check?"},
    "subject_missing": {"question": "Why is the room checked before the list is extended?"},
    "subject_missing 2": {"question": "Why does `Cart.adder` check the room first?"},
    "no_answer": {"answer": "Room."},
    "no_answer 2": {"answer": "The given documents do not say."},
    "no_answer 3": {"answer": "As an AI I see no check of the count in this code."},
    "no_answer 4": {"answer": ""},
    "no_quote": {"quote": " "},
    "unverified_quote": {"quote": "self.check_rooms(count)"},
    "unverified_quote 2": {"reasoning": "See ##begin_quote##nothing of this##end_quote## here."},
    "weak_quote": {"quote": "count"},
    "weak_quote 2": {"quote": add_block().source_code},
    "answer_in_question": {"question": f"Why does `Cart.add` do this: {GOOD.answer} Is it so?"},
    "answer_in_question 2": {"question": "Why does `Cart.add` have self.check_room(count) first?"},
    "unknown_name": {"answer": "So that `self.lock` is held while the count is checked."},
    "unknown_name 2": {"answer": "So that check_everything comes before the count is used."},
    "unknown_name 3": {"reasoning": "It calls validate() on the count before the list grows."},
    "unknown_name 4": {"question": "Why does `Cart.add` call `self.lock` before it extends?"},
    "code_block": {"answer": "So that the count fits:\n```\nself.check_room(count)\n```"},
    "code_block 2": {"answer": "So that the `count fits into the room that the cart has."},
    "foreign_address": {"answer": "The count is checked as https://example.org/cart says."},
    "foreign_address 2": {"answer": "The count is checked, as someone@example.org has asked."},
    "unrelated": {"reasoning": "Nice weather today.", "answer": "Birds sing in the morning."},
    "markers": {"answer": "So that the count fits. <|im_end|> And then it goes on."},
    "markers 2": {"reasoning": "The room is checked. <ANSWER>: the count is checked."},
    "markers 3": {"reasoning": "##begin_quote##self.check_room(count)##end_quote## ##end_quote##"},
    "control_characters": {"answer": "So that the count\x07 fits into the cart."},
    "control_characters 2": {"answer": "So that the count � fits into the cart."},
    "control_characters 3": {"answer": "So that the count \u202e fits into the cart."},
    "too_long": {"answer": "The count fits. " * 90},
    "secret": {"answer": "The count is checked with the token ghp_" + "a1B2c3D4e5" * 3 + "F6g7H8."},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_its_reason(case: str) -> None:
    outcome = Gate([]).new_example(replace(GOOD, **REFUSED[case]), subject())
    assert isinstance(outcome, Refusal)
    assert outcome.reason == case.split()[0], outcome
    assert outcome.detail and outcome.advice


def test_every_reason_is_tested_and_has_an_advice() -> None:
    tested = {case.split()[0] for case in REFUSED}
    tested |= {"repeated_question", "repeated_answer", "other_question"}
    assert tested == set(ADVICE)


def test_an_ambiguous_name_needs_its_path() -> None:
    outcome = Gate([]).new_example(GOOD, subject(ambiguous=True))
    assert isinstance(outcome, Refusal) and outcome.reason == "subject_missing"
    question = GOOD.question.replace("`Cart.add`", "`Cart.add` (shop/cart.py)")
    assert subject(ambiguous=True).symbol in question
    draft = Gate([]).new_example(replace(GOOD, question=question), subject(ambiguous=True))
    assert not isinstance(draft, Refusal)


def test_nothing_is_asked_or_said_twice() -> None:
    gate = Gate([])
    assert not isinstance(gate.new_example(GOOD, subject()), Refusal)
    again = gate.new_example(replace(GOOD, question=GOOD.question.upper()), subject())
    assert isinstance(again, Refusal)
    same = replace(GOOD, question=GOOD.question.replace("  ", " ").replace("Why does", "why does "))
    again = gate.new_example(same, subject())
    assert isinstance(again, Refusal) and again.reason == "repeated_question"
    other = replace(GOOD, question="How does `Cart.add` guard against a full cart?", kind="how")
    again = gate.new_example(other, subject())
    assert isinstance(again, Refusal) and again.reason == "repeated_answer"
    of_the_dataset = Gate([ground().add(GOOD, subject(), "agent")])  # type: ignore[list-item]
    for written, reason in ((GOOD, "repeated_question"), (other, "repeated_answer")):
        again = of_the_dataset.new_example(written, subject())
        assert isinstance(again, Refusal) and again.reason == reason


def test_an_extension_may_name_what_its_question_brings() -> None:
    written = replace(
        GOOD,
        kind="extend",
        question="How would you extend `Cart.add` to take a `gift_wrap` flag?",
        reasoning="The items are checked and put in at one place.",
        answer="Add the parameter `gift_wrap` and mark the items after the room was checked.",
    )
    assert not isinstance(Gate([]).new_example(written, subject()), Refusal)
    invented = replace(written, answer=f"{written.answer} Then call `wrap_all`.")
    outcome = Gate([]).new_example(invented, subject())
    assert isinstance(outcome, Refusal) and outcome.reason == "unknown_name"
    outcome = Gate([]).new_example(replace(written, kind="why"), subject())
    assert isinstance(outcome, Refusal) and outcome.reason == "unknown_name"


texts = st.text(max_size=80) | st.sampled_from(
    [*(value for case in REFUSED.values() for value in case.values()), GOOD.question, GOOD.quote,
     GOOD.answer, GOOD.reasoning, "##begin_quote##", "##end_quote##", "`", "(", "why", "extend"]
)  # fmt: skip


@hypothesis_settings(max_examples=200, deadline=None)
@given(texts, texts, texts, texts, texts)
def test_whatever_passes_is_a_sound_example(
    kind: str, question: str, cited: str, reasoning: str, answer: str
) -> None:
    block = add_block()
    draft = Gate([]).new_example(Written(kind, question, cited, reasoning, answer), subject())
    if isinstance(draft, Refusal):
        assert draft.reason in ADVICE
        return
    parsed = parse_answer(render_answer(draft.reasoning, draft.answer))
    assert parsed.final_answer == draft.answer and parsed.quotes
    assert all(find_quote(one, [block]) for one in parsed.quotes)
    assert check(draft.fact, [block]) and "Cart.add" in draft.question


# -- the gate: other words --------------------------------------------------------------------


def example_of(kind: str, question: str, value: str, subject: str = "") -> RaftExample:
    return RaftExample(
        id="ex-1", question=question, oracle_ids=[ADD], distractor_ids=[], reasoning="r",
        final_answer=value, difficulty="easy", split="train",
        fact=Fact(kind=kind, block=ADD, value=value, subject=subject),
    )  # fmt: skip


RAISES = example_of("raises", "Which exceptions does `Cart.add` raise?", "`ValueError`")
DEFAULT = example_of(
    "default", "What is the default value of `count` in `Cart.add` (shop/cart.py)?", "`1`", "count"
)


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (RAISES, "What errors might `Cart.add` throw?"),
        (RAISES, "If something goes wrong, which  exceptions can\ncome out of `Cart.add`?"),
        (DEFAULT, "What does `count` default to in `Cart.add` (shop/cart.py)?"),
        (DEFAULT, "Which value has `count` in `Cart.add` (shop/cart.py) when it is not given?"),
        (example_of("purpose", "What is `Cart.add` for?", "Put an item into the cart."),
         "What job does `Cart.add` do?"),
        (example_of("guard", "When does `Cart.add` raise `ValueError`?", "`count < 1`", "E"),
         "Under which circumstances will `Cart.add` raise `ValueError`?"),
    ],
)  # fmt: skip
def test_other_words_for_the_same_question_pass(example: RaftExample, text: str) -> None:
    assert Gate([example]).paraphrase(text, example) == " ".join(text.split())


@pytest.mark.parametrize(
    ("example", "text", "reason"),
    [
        (RAISES, "which exceptions does `Cart.add` raise ?", "repeated_question"),
        (RAISES, "Name the exceptions of `Cart.add`.", "question_form"),
        (RAISES, "Which exceptions does this raise?", "subject_missing"),
        (DEFAULT, "What does `count` default to in `Cart.add`?", "subject_missing"),
        (RAISES, "Which exceptions does `Cart.add` of `Cart` raise?", "unknown_name"),
        (RAISES, "Which exceptions does `Cart.add` catch?", "other_question"),
        (RAISES, "Which exceptions does `Cart.add` not raise?", "other_question"),
        (example_of("annotation", "How is `count` annotated in `Cart.add`?", "`int`", "count"),
         "Which type does `count` of `Cart.add` not have?", "other_question"),
        (RAISES, "How many exceptions does `Cart.add` raise?", "other_question"),
        (RAISES, "What does `Cart.add` do with the list?", "other_question"),
        (RAISES, "Does `Cart.add` raise the exception ValueError?", "answer_in_question"),
        (RAISES, "Which exceptions\x07 does `Cart.add` raise in the end?", "control_characters"),
        (DEFAULT, "What is the type of the default of `count` in `Cart.add` (shop/cart.py)?",
         "other_question"),
    ],
)  # fmt: skip
def test_another_question_is_no_paraphrase(example: RaftExample, text: str, reason: str) -> None:
    outcome = Gate([example]).paraphrase(text, example)
    assert isinstance(outcome, Refusal)
    assert outcome.reason == reason, outcome


def test_forges_own_questions_ask_for_what_the_gate_wants() -> None:
    """A phrasing that Forge trains on is always an allowed wording of another one."""
    seen = set()
    for example in shop().examples:
        if example.fact.kind in REPHRASED and example.split == "train":
            asks, never = REPHRASED[example.fact.kind]
            plain = re.sub(r"`[^`]*`", "", example.question).lower()
            assert asks.search(plain), example.question
            assert not never.search(plain), example.question
            seen.add(example.fact.kind)
    assert len(seen) >= 8


# -- rows -------------------------------------------------------------------------------------


def test_a_row_has_the_documents_of_its_split() -> None:
    place = ground()
    row = place.add(GOOD, place.subjects[ADD], "agent")
    assert isinstance(row, RaftExample)
    assert row.author == "agent" and row.split == "train" and row.oracle_ids == [ADD]
    assert row == ground().add(GOOD, ground().subjects[ADD], "agent"), "seeded"
    held_out = {
        block_id
        for example in shop().examples
        if example.split != "train" and not example.closed_book
        for block_id in (*example.oracle_ids, *example.distractor_ids)
    }
    assert held_out and not held_out & {*row.oracle_ids, *row.distractor_ids}
    assert not held_out & place.subjects.keys()


def test_difficulty_follows_from_the_distractors() -> None:
    place, found = ground(), {}
    one = place.subjects[ADD]
    for number in range(24):
        written = replace(
            GOOD,
            question=f"Why does `Cart.add` check the room first, seen for the {number}th time?",
            answer=f"So that no item is put in without room, said for the {number}th time.",
        )
        row = place.add(written, one, "agent")
        assert isinstance(row, RaftExample)
        found[len(row.distractor_ids)] = row.difficulty
    assert found == {0: "easy", 1: "medium", 2: "medium", 3: "hard"}
    bare = load_settings().raft.model_copy(update={"distractors": 0})
    row = Ground(shop().examples, shop().documents, bare).add(GOOD, one, "agent")
    assert isinstance(row, RaftExample) and not row.distractor_ids


def test_what_cannot_be_asked_about_is_no_subject() -> None:
    dataset = shop()
    changed = []
    for block in dataset.documents:
        text, metadata = block.source_code, dict(block.metadata)
        if block.id == ADD:
            text += "\n# <|im_end|>"
        elif block.name == "parse_price":
            text += "\n#" + "x" * 13_000
        elif block.name == "Cart":
            metadata["skeleton"] = [[0, 4], [3, 10]]
        elif block.name == "apply_rate":
            metadata["secrets_redacted"] = 1
        changed.append(block.model_copy(update={"source_code": text, "metadata": metadata}))
    place = Ground(dataset.examples, changed, load_settings().raft)
    missing = ground().subjects.keys() - place.subjects.keys()
    assert missing == {
        ADD, "shop/prices.py::parse_price", "shop/cart.py::Cart", "shop/prices.py::apply_rate",
    }  # fmt: skip
