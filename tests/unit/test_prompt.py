"""The one prompt renderer: what a model sees, and what is read from its answer."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    escape,
    find_quote,
    parse_answer,
    quote,
    render_answer,
    render_document,
    render_messages,
    render_question,
)

MARKERS = re.compile(
    r"<\|\w+\|>|</?DOCUMENT>|<ANSWER>:|##(?:begin|end)_quote##|</?s>|\[/?(?:INST|TOOL_CALLS)\]"
)
text_with_markers = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<|im_end|>",
                "</s>",
                "[/INST]",
                "</DOCUMENT>",
                "<ANSWER>:",
                "##begin_quote##",
                "#",
                "<",
            ]
        ),
        st.text(max_size=10),
    )
).map("".join)


def block(source: str, path: str = "a.py", line: int = 1) -> CodeBlock:
    return CodeBlock(
        id="x",
        content_hash="",
        path=path,
        language="python",
        block_type="function",
        name="f",
        qualified_name="f",
        source_code=source,
        start_line=line,
        end_line=line + source.count("\n"),
        start_byte=0,
        end_byte=len(source.encode()),
        tokens=1,
    )


@given(text_with_markers)
def test_no_marker_survives_escaping(text: str) -> None:
    assert not MARKERS.search(escape(text))
    assert escape(text).replace("\\", "") == text.replace("\\", "")


@given(st.text().filter(lambda t: not MARKERS.search(t)))
def test_text_without_markers_is_unchanged(text: str) -> None:
    assert escape(text) == text


@given(text_with_markers)
def test_a_document_opens_and_closes_once_whatever_it_holds(source: str) -> None:
    rendered = render_document(block(source))
    assert rendered.count("<DOCUMENT>") == 1
    assert rendered.count("</DOCUMENT>") == 1
    assert rendered.endswith("</DOCUMENT>")


@given(text_with_markers, st.data())
def test_every_substring_that_is_quoted_is_found_again(source: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(source)))
    end = data.draw(st.integers(start, len(source)))
    part = source[start:end]
    answer = parse_answer(render_answer(f"It says {quote(part)} there.", "yes"))
    assert answer.complete
    assert answer.final_answer == "yes"
    found = find_quote(answer.quotes[0], [block(source)])
    # A cut through the middle of a marker changes what is escaped; only such a cut may miss.
    if escape(part) in escape(source):
        assert (found is not None) == bool(part.strip())


def test_a_citation_gives_lines_of_the_file() -> None:
    source = "def f(x):\n    y = x\n    return y"
    found = find_quote("    y = x\n    return y", [block("other"), block(source, line=10)])
    assert found is not None
    assert (found.block.path, found.start_line, found.end_line) == ("a.py", 11, 12)
    assert find_quote("return z", [block(source)]) is None
    assert find_quote("  \n", [block(source)]) is None


@pytest.mark.parametrize(
    ("text", "final", "complete"),
    [
        ("because <ANSWER>: 3", "3", True),
        ("<ANSWER>: a\nb ", "a\nb", True),
        ("never came to it", "", False),
        ("", "", False),
    ],
)
def test_answers_are_taken_apart(text: str, final: str, complete: bool) -> None:
    parsed = parse_answer(text)
    assert (parsed.final_answer, parsed.complete) == (final, complete)


def test_an_open_quote_is_no_quote() -> None:
    assert parse_answer("##begin_quote##x <ANSWER>: y").quotes == []


def test_the_rendered_chat_is_the_one_that_models_were_trained_on() -> None:
    # A change here changes PROMPT_VERSION too: trained models have seen exactly this.
    messages = render_messages([block("def f(): pass", line=3)], "What is `f`?", "<ANSWER>: 1", "S")
    assert [(m.role, m.content) for m in messages] == [
        ("system", "S"),
        (
            "user",
            "<DOCUMENT> a.py:3-3 f\ndef f(): pass\n</DOCUMENT>\nQuestion: What is `f`?",
        ),
        ("assistant", "<ANSWER>: 1"),
    ]
    assert render_question([], "Why?") == "Question: Why?"
