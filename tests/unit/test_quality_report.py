"""The report as a page, its reading of rows, HumanEval files, preference pairs, code answers."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.errors import BadInput, CorruptArtifact
from forge_mcp.quality import Validation, generate_quality_report, validate_dataset
from forge_mcp.quality.code import fenced, parses
from forge_mcp.quality.contamination import WORDS, Contamination, grams, load_humaneval
from forge_mcp.quality.page import quality_page
from forge_mcp.quality.pairs import check_preferences, validate_preference
from forge_mcp.quality.questions import asks_for
from forge_mcp.quality.reasons import REASONS, reason_of
from forge_mcp.quality.rows import RowFault, read_rows
from forge_mcp.quality.texts import is_cut, is_sentence, junk, prose, repeated, spans
from forge_mcp.raft import build_dataset
from forge_mcp.raft.phrases import QUESTIONS
from forge_mcp.schemas.prompt import escape, render_answer, render_messages
from forge_mcp.schemas.raft_examples import PreferencePair, RaftExample
from forge_mcp.settings import load_settings

DATASET = build_dataset(blocks_of(SHOP), load_settings().raft)
DOCUMENTS = {block.id: block for block in DATASET.documents}
THRESHOLDS = load_settings().quality.model_dump()


def bad(example: RaftExample) -> RaftExample:
    return example.model_copy(
        update={"id": "ex-bad", "question": "What is `<script>alert(1)</script>` & <b>?"}
    )


@pytest.fixture(scope="module")
def mixed() -> Validation:
    return validate_dataset(
        [*DATASET.examples, bad(DATASET.examples[0])],
        DOCUMENTS,
        load_settings().quality,
        malformed=[RowFault("examples.jsonl", 7, "malformed: id: Field required <x>")],
    )


# -- the page ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are open, those that there are, and every attribute that loads something."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_loads_nothing_and_escapes_everything(mixed: Validation) -> None:
    text = quality_page(mixed, title="ds-<shop>", thresholds=THRESHOLDS)
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "b"} - {"b"}
    assert page.loaded and all(src.startswith("data:image/png;base64,") for src in page.loaded)
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Data quality of ds-<shop> passed" in page.text
    for heading in ("Before and after", "Scores", "What was dropped", "Worst examples"):
        assert heading in page.text
    assert "examples.jsonl, line 7: malformed: id: Field required <x>" in page.text
    assert REASONS["unnamed_subject"].advice in page.text
    assert "shop/" in page.text and "prefers-color-scheme: dark" in text


def test_a_page_of_a_refusal_and_of_nothing() -> None:
    nothing = validate_dataset([], {}, load_settings().quality)
    text = quality_page(nothing, title="ds-none", thresholds={})
    assert "refused" in text and "quality.min_examples" in text
    assert "No example was dropped." in text
    assert Page(text).open == []


def test_markdown_names_malformed_rows_licences_and_places(mixed: Validation) -> None:
    text = generate_quality_report(mixed, title="ds-shop", thresholds=THRESHOLDS)
    assert "examples.jsonl, line 7" in text
    assert "| licence | documents |" in text and "| not known |" in text
    assert re.search(r"\| ex-bad \| .* \| shop/\w+\.py:\d+-\d+", text)
    assert mixed.metrics.total_examples == len(mixed.judged) + 1
    assert mixed.dropped["malformed"] == 1


def test_a_dataset_without_faults_says_so() -> None:
    clean = validate_dataset(DATASET.examples, DOCUMENTS, load_settings().quality)
    assert clean.dropped == {}
    text = generate_quality_report(clean, title="x", thresholds={})
    assert "No example was dropped." in text


# -- rows --------------------------------------------------------------------------------------


def test_rows_that_are_no_examples_are_counted(tmp_path: Path) -> None:
    good = DATASET.examples[0].model_dump()
    lines = [good, {**good, "difficulty": "extreme"}, {"id": 1}, [], {**good, "extra": 1}, good]
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "\n")
    rows, faults = read_rows(file, RaftExample)
    assert len(rows) == 2
    assert [fault.line for fault in faults] == [2, 3, 4, 5]
    assert faults[0].message.startswith("malformed: difficulty: ") and faults[0].reason in REASONS
    assert all(fault.file == "examples.jsonl" for fault in faults)


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=1, max_value=2000))
def test_a_file_that_is_cut_names_its_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    text = "".join(f"{e.model_dump_json()}\n" for e in DATASET.examples[:4])
    file = tmp_path_factory.getbasetemp() / "examples.jsonl"
    kept = text.encode()[: -1 - cut]
    file.write_bytes(kept)
    whole = kept.count(b"\n") + kept.endswith(b"}")
    try:
        rows, faults = read_rows(file, RaftExample)
    except CorruptArtifact as error:
        assert error.message == f"Line {kept.count(10) + 1} of examples.jsonl is cut off."
    else:
        assert len(rows) == whole and not faults


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_bytes(b'{"id": "\xff"}\n{}\n')
    with pytest.raises(CorruptArtifact, match=r"Line 1 of documents\.jsonl is no JSON"):
        read_rows(file, RaftExample)


# -- HumanEval ---------------------------------------------------------------------------------


def problems(tmp_path: Path, *lines: str, name: str = "HumanEval.jsonl.gz") -> Path:
    file = tmp_path / name
    data = "".join(f"{line}\n" for line in lines).encode()
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


PROBLEM = "def f(x):\n    one two three four five six seven eight nine ten eleven twelve\n"


@pytest.mark.parametrize("name", ["HumanEval.jsonl", "HumanEval.jsonl.gz"])
def test_thirteen_words_in_a_row_are_a_contamination(tmp_path: Path, name: str) -> None:
    line = json.dumps({"prompt": PROBLEM, "canonical_solution": "    return thirteen\n"})
    found = Contamination(load_humaneval(problems(tmp_path, line, name=name)))
    thirteen = "two three four five six seven eight nine ten eleven twelve return thirteen"
    assert len(thirteen.split()) == WORDS
    assert found.in_text(f"So: {thirteen.upper()}, and more")
    assert not found.in_text(thirteen.replace("six", "6"))
    assert not found.in_text("twelve return thirteen")
    assert found.in_document("hash", PROBLEM) and found.in_document("hash", "kept by its hash")
    assert len(grams(thirteen)) == 1 and grams("a b") == set()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"no gzip", "Not a gzipped file"),
        (gzip.compress(b'{"prompt": "a"}\n', mtime=0), "line 1: KeyError"),
        (gzip.compress(b'{"prompt": 1, "canonical_solution": ""}\n', mtime=0), "line 1: TypeError"),
        (gzip.compress(b"no json\n", mtime=0), "line 1: JSONDecodeError"),
        (gzip.compress(b"", mtime=0), "no line has a prompt"),
        (gzip.compress(b'{"prompt": "a"}' * 99, mtime=0)[:20], "ended before"),
        (None, "No such file"),
    ],
    ids=["gzip", "key", "type", "json", "empty", "cut", "missing"],
)
def test_a_file_that_is_no_humaneval_is_named(
    tmp_path: Path, content: bytes | None, cause: str
) -> None:
    file = tmp_path / "HumanEval.jsonl.gz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput) as error:
        load_humaneval(file)
    assert str(file) in error.value.message and cause in error.value.cause
    assert "quality.humaneval_path" in error.value.next_step


# -- preference pairs --------------------------------------------------------------------------


def by_prompt() -> dict[str, RaftExample]:
    rows = zip(
        (e for e in DATASET.examples if e.split == "train"), DATASET.rows("train"), strict=True
    )
    return {row.messages[1].content: example for example, row in rows}


def test_pairs_of_the_generator_hold() -> None:
    kept, counts = check_preferences(DATASET.preferences, by_prompt(), DOCUMENTS)
    assert kept == DATASET.preferences
    assert counts == {"kept": len(DATASET.preferences)}


def test_a_pair_that_does_not_hold_is_dropped() -> None:
    pairs = {p.fact.kind: p for p in DATASET.preferences}
    pair, code = pairs["location"], pairs["code"]
    token = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
    reasoning = pair.chosen.partition("<ANSWER>:")[0]

    def spoilt(one: PreferencePair, **fields: str) -> PreferencePair:
        return one.model_copy(update=fields)

    faults = {
        "unknown_prompt": spoilt(pair, prompt="Question: never asked"),
        "false_chosen": spoilt(pair, chosen=pair.rejected),
        "same_answer": spoilt(pair, rejected=f"Other words.\n<ANSWER>: {pair.fact.value}"),
        "empty_text": spoilt(pair, rejected=reasoning),
        "secret": spoilt(pair, rejected=f"{pair.rejected} {token}"),
        "true_rejected": spoilt(code, rejected=f"{code.chosen}\n"),
    }
    example = by_prompt()[code.prompt]
    told = render_answer("", f"This is it:\n{escape(example.fact.value)}")
    faults["true_rejected"] = spoilt(code, rejected=told)
    for reason, one in faults.items():
        messages = validate_preference(one, by_prompt().get(one.prompt), DOCUMENTS)
        assert reason in [reason_of(message) for message in messages], reason
        assert reason in REASONS
    kept, counts = check_preferences(faults.values(), by_prompt(), DOCUMENTS)
    assert kept == [] and sum(counts.values()) == len(faults) and counts["kept"] == 0


def test_a_rejected_answer_that_is_true_all_the_same_is_found() -> None:
    example = next(e for e in DATASET.examples if e.fact.kind == "methods" and not e.oracle_absent)
    turned = ", ".join(reversed(example.fact.value.split(", ")))
    assert turned != example.fact.value
    pair = PreferencePair(
        prompt=render_messages([], example.question)[1].content,
        chosen=render_answer(example.reasoning, example.final_answer),
        rejected=render_answer(example.reasoning, turned),
        fact=example.fact,
        corruption="the order",
    )
    assert [reason_of(m) for m in validate_preference(pair, example, DOCUMENTS)] == [
        "true_rejected"
    ]


# -- code and texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "code", "broken"),
    [
        ("python", "def f(self):\n        return 1", "def f(self:\n        return 1"),
        (
            "python",
            "    @property\n    def f(self):\n        return 1",
            "    def f(self):\n  x\n y",
        ),
        ("java", "public int f() throws E { return 1; }", "public int f() { return 1;"),
        ("javascript", "get() { return 1; }", "get() { return (1; }"),
        ("typescript", "private f(a: number): void { a; }", "private f(a: number: void { a; }"),
        ("tsx", "render() { return <a/>; }", "render() { return <a>; }"),
        ("go", "func (c *C) F() int {\n\treturn 1\n}", "func (c *C F() int {"),
        ("rust", "fn f(&self) -> u8 { 1 }", "fn f(&self -> u8 { 1 }"),
        ("c", "int f(void) { return 1; }", "int f(void { return 1; }"),
        ("ruby", "def f\n  1\nend", "def f(\n  1\n"),
        ("php", "public function f() { return 1; }", "public function f() { return 1;"),
    ],
)
def test_code_of_an_answer_is_parsed_in_its_language(language: str, code: str, broken: str) -> None:
    assert parses(code, language)
    assert not parses(broken, language)


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(BadInput, match="cobol"):
        parses("MOVE 1 TO X.", "cobol")


def test_only_one_closed_block_is_code() -> None:
    assert fenced("```python\nx = 1\n```") == ("python", "x = 1")
    assert fenced("```\n```") == ("", "")
    for text in ("x = 1", "```python\nx = 1", "Here: ```x```", "```a\nb\n``` and more"):
        assert fenced(text) is None


@given(st.text())
def test_whatever_stands_in_a_document_is_no_junk(text: str) -> None:
    assert junk(text, [text]) == ""


@given(st.text(alphabet=st.characters(codec="ascii", min_codepoint=32, max_codepoint=126)))
def test_plain_text_is_no_junk(text: str) -> None:
    assert junk(text, []) == ""


def test_prose_is_what_is_no_code() -> None:
    text = "See `f(x)` and ##begin_quote##return `y`##end_quote##.\n```python\nx_y = 1\n```\nDone."
    assert "return" not in prose(text) and "x_y" not in prose(text) and "f(x)" not in prose(text)
    assert spans(text) == ["f(x)"]
    assert spans("no code") == [] and prose("no code") == "no code"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("What does `f` return?", True),
        ("¿Qué devuelve `f`?", True),
        ("`f`?", False),
        ("asdf jkl qwrt?", False),
        ("12 34 #### !!! the ;;; ((( )))", False),
    ],
)
def test_what_a_sentence_is(text: str, sentence: bool) -> None:
    assert is_sentence(text) is sentence


def test_cut_and_repeated_texts() -> None:
    assert is_cut("and then it") and not is_cut("It is. ") and not is_cut("See `f`")
    assert repeated("It says so to you. It says so to you.") == "it says so to you."
    assert repeated("very very very very much") == "very"
    assert repeated("One thing is here. Another thing is there.") == ""


@pytest.mark.parametrize("kind", QUESTIONS)
def test_every_phrasing_of_the_generator_asks_for_its_kind(kind: str) -> None:
    asked = "annotation" if kind == "return_annotation" else kind
    for template in QUESTIONS[kind]:
        for throw in ("raise", "throw", "panic with"):
            words = template.replace("{throw}", throw).replace("{throws}", f"{throw}s")
            text = words.replace("{s}", "`f`").replace("{p}", "x").replace("{c}", "g")
            assert asks_for(asked, text), text
