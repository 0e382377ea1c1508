"""The one prompt renderer.

Synthesis, training, judging, `query` and the Modelfile all write system prompt, documents and
question through this module, so a model is asked in exactly the words in which it was trained.
The answer's form is RAFT's (arXiv 2403.10131, section 3): reasoning that cites with
``##begin_quote##…##end_quote##`` and ends in ``<ANSWER>:``.

Change `PROMPT_VERSION` with any change of the rendered text: it is part of what a dataset, a run
and a deployment are made from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Message

PROMPT_VERSION = 2

DEFAULT_SYSTEM_PROMPT = (
    "You answer questions about one code repository. Quote the given documents, then answer. "
    "If they do not say, say so."
)
ABSTAIN_ANSWER = "The given documents do not say."

BEGIN_QUOTE = "##begin_quote##"
END_QUOTE = "##end_quote##"
ANSWER = "<ANSWER>:"

# Text from a repository must never close a document, open a turn, or pose as a citation. Turns are
# opened by <|…|> (Llama 3, Qwen, forge-nano) or by [INST] and </s> (Mistral).
_MARKERS = re.compile(
    r"<(?=\|\w+\|>)|<(?=/?DOCUMENT>)|<(?=ANSWER>:)|#(?=#(?:begin|end)_quote##)"
    r"|<(?=/?s>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\])"
)


def escape(text: str) -> str:
    r"""Make repository text harmless inside a prompt: a backslash breaks every marker.

    ``<|im_end|>`` becomes ``<\|im_end|>``. Text without markers is returned unchanged. A quote is
    looked up in the *escaped* text of its document, because that is what the model saw.
    """
    return _MARKERS.sub(lambda match: match.group() + "\\", text)


def render_document(block: CodeBlock) -> str:
    """One document: a line that says where it is, then the code."""
    return (
        f"<DOCUMENT> {escape(block.path)}:{block.start_line}-{block.end_line} "
        f"{escape(block.qualified_name)}\n{escape(block.source_code)}\n</DOCUMENT>"
    )


def render_question(documents: Sequence[CodeBlock], question: str) -> str:
    """The user's turn: the documents (none in closed-book questions), then the question."""
    parts = [render_document(document) for document in documents]
    parts.append(f"Question: {escape(question)}")
    return "\n".join(parts)


def quote(text: str) -> str:
    """A citation of `text`, which must be a substring of a document's source."""
    return f"{BEGIN_QUOTE}{escape(text)}{END_QUOTE}"


def render_answer(reasoning: str, final_answer: str) -> str:
    """The assistant's turn. `reasoning` may hold citations made by `quote`."""
    return f"{reasoning}\n{ANSWER} {final_answer}" if reasoning else f"{ANSWER} {final_answer}"


def render_messages(
    documents: Sequence[CodeBlock],
    question: str,
    answer: str | None = None,
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
) -> list[Message]:
    """The whole chat, for a tokenizer's chat template; with `answer`, a training row."""
    messages = [
        Message(role="system", content=system_prompt),
        Message(role="user", content=render_question(documents, question)),
    ]
    if answer is not None:
        messages.append(Message(role="assistant", content=answer))
    return messages


@dataclass(frozen=True)
class ParsedAnswer:
    """An assistant's turn, taken apart. `complete` is False where `<ANSWER>:` never came."""

    reasoning: str
    quotes: list[str]
    final_answer: str
    complete: bool


def parse_answer(text: str) -> ParsedAnswer:
    """Inverse of `render_answer` for what a model wrote, however malformed."""
    reasoning, marker, final = text.partition(ANSWER)
    quotes = re.findall(f"{BEGIN_QUOTE}(.*?){END_QUOTE}", reasoning, flags=re.DOTALL)
    return ParsedAnswer(
        reasoning=reasoning.strip(),
        quotes=quotes,
        final_answer=final.strip() if marker else "",
        complete=bool(marker),
    )


@dataclass(frozen=True)
class Citation:
    """Where a verified quote stands. Lines are 1-based and inclusive, of the file."""

    block: CodeBlock
    start_line: int
    end_line: int


def find_quote(quoted: str, documents: Sequence[CodeBlock]) -> Citation | None:
    """The first document that holds `quoted` byte for byte (as rendered), or None."""
    if not quoted.strip():
        return None
    for document in documents:
        text = escape(document.source_code)
        at = text.find(quoted)
        if at >= 0:
            at += len(quoted) - len(quoted.lstrip("\n"))
            first = text.count("\n", 0, at)
            last = first + quoted.strip("\n").count("\n")
            return Citation(document, document.file_line(first), document.file_line(last))
    return None
