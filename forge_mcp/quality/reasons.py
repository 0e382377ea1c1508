"""Every reason for which something is refused: what it means, and what to do about it.

A message of the checks begins with its reason, e.g. "unverified_quote: …"; reports count by that
word and take the advice from here.
"""

from __future__ import annotations

from typing import NamedTuple

AGAIN = "Make the dataset again with synthesize."
WRITTEN = "Correct the row where it was written, or leave it out."


class Reason(NamedTuple):
    """What a reason says of a row, and what its user can do."""

    meaning: str
    advice: str


REASONS: dict[str, Reason] = {
    # -- the row itself
    "malformed": Reason(
        "a row lacks a field, or a field has a wrong type",
        "Rows written by hand or by another tool must have the fields of docs/data_quality.md.",
    ),
    "repeated_id": Reason("two rows have one id", "Give every row an id of its own."),
    "wrong_difficulty": Reason(
        "the difficulty does not fit the number of documents", f"Correct the difficulty. {AGAIN}"
    ),
    # -- the question
    "empty_text": Reason("question or answer is empty", WRITTEN),
    "garbled_text": Reason(
        "a text holds broken characters, is no sentence, or is repeated", WRITTEN
    ),
    "cut_text": Reason("a text ends in the middle", WRITTEN),
    "leftover": Reason(
        "a placeholder of a template, or a phrase of a chat assistant, was left in a text", WRITTEN
    ),
    "injection": Reason(
        "a text gives orders to the model that reads it",
        "Look at where the text comes from; exclude that file (project.exclude) or that row.",
    ),
    "unnamed_subject": Reason(
        "the question does not name what it asks about", "Name the definition in the question."
    ),
    "question_kind": Reason(
        "the question asks for something else than the answer states",
        "Ask for what the fact states.",
    ),
    "answer_in_question": Reason(
        "the question already holds the answer", "Ask without giving the answer away."
    ),
    "question_length": Reason("the question is too short or too long", WRITTEN),
    # -- documents
    "no_oracle": Reason("no document holds the answer", AGAIN),
    "oracle_count": Reason("more or fewer oracles than the kind of fact needs", AGAIN),
    "missing_document": Reason("documents.jsonl lacks a document of the row", AGAIN),
    "repeated_document": Reason("one document stands twice in a row", AGAIN),
    "too_many_documents": Reason(
        "more documents than any setting allows", "Lower raft.distractors."
    ),
    "answering_distractor": Reason(
        "a distractor holds the answer, or is a part or a copy of an oracle", AGAIN
    ),
    "answer_shown": Reason("a document holds the code that the question asks for", AGAIN),
    "empty_document": Reason("a document has no code", AGAIN),
    "document_length": Reason("a document is too short or too long to learn from", AGAIN),
    "changed_document": Reason("a document is not what its hash says: it was edited", AGAIN),
    "document_place": Reason("the lines or bytes of a document cannot be", AGAIN),
    "invalid_code": Reason(
        "code of a document or of an answer cannot be parsed",
        "Exclude files that are templates or of another language version (project.exclude).",
    ),
    "no_docstring": Reason(
        "nothing says what the code is for", "Document it, or ask for its facts only."
    ),
    # -- the fact
    "unknown_kind": Reason("the fact is of no known kind", AGAIN),
    "false_fact": Reason("the fact does not follow from its documents", AGAIN),
    # -- reasoning and answer
    "no_reasoning": Reason("the answer is not explained", WRITTEN),
    "answer_length": Reason("reasoning and answer are too long", "Shorten them."),
    "markers": Reason(
        "a text holds markers of documents, quotes, answers or turns where they do not belong",
        WRITTEN,
    ),
    "no_quote": Reason("the reasoning cites nothing", "Cite the line that holds the answer."),
    "unverified_quote": Reason(
        "a quote stands in no oracle, byte for byte", "Copy quotes from the document. " + AGAIN
    ),
    "trivial_quote": Reason("a quote is empty or says nothing", "Cite a whole line."),
    "unfocused_quote": Reason(
        "a quote is a whole document", "Cite only the lines that hold the answer."
    ),
    "irrelevant_quote": Reason(
        "a quote has nothing to do with the fact", "Cite the line that holds the answer."
    ),
    "uncited_oracle": Reason(
        "a document that the answer needs is not cited", "Cite every oracle once."
    ),
    "quote_of_absent": Reason("the row cites a document that it does not show", AGAIN),
    "unstated_fact": Reason(
        "the answer does not hold the value of its fact", "State the fact's value in the answer."
    ),
    "contradiction": Reason(
        "the answer denies, changes or adds to its fact", "State the fact's value and nothing else."
    ),
    "unknown_name": Reason(
        "a text names something that stands in none of its documents",
        "Name only what the documents, the question or the fact hold.",
    ),
    "wrong_place": Reason(
        "the reasoning gives a path or lines that are those of no document", AGAIN
    ),
    "nothing_shown": Reason(
        "no document is shown, and the row is not marked as closed-book", "Mark it as closed_book."
    ),
    "closed_book_documents": Reason(
        "a closed-book row shows documents or marks its oracle as absent", AGAIN
    ),
    # -- the row among the others
    "secret": Reason(
        "a credential stands in a text or a document",
        "Rotate the credential, then run extract again: it removes what it recognises.",
    ),
    "contaminated": Reason(
        "13 words in a row are those of a HumanEval problem",
        "Exclude the file (project.exclude): with it, HumanEval results mean nothing.",
    ),
    "duplicate": Reason(
        "the row repeats another one",
        "Lower raft.examples_per_block, or exclude generated and copied code (project.exclude).",
    ),
    "duplicate_across_splits": Reason(
        "a training row repeats a held-out one",
        "The same code stands in several files; exclude the copies (project.exclude).",
    ),
    "conflicting_answers": Reason(
        "the same question has several answers",
        "Name the definition with its path, so that the question has one answer.",
    ),
    "split_leak": Reason(
        "documents of the row belong to another split", f"Files are assigned to splits. {AGAIN}"
    ),
    "untrained_closed_book": Reason(
        "a held-out closed-book row asks about a definition that is not trained on", AGAIN
    ),
    # -- thresholds
    "low_quality": Reason(
        "the score is below quality.min_quality_score",
        "Short, undocumented definitions score low: raise mining.min_tokens or set "
        "mining.require_docstring.",
    ),
    "low_oracle_relevance": Reason(
        "retrieval finds other documents before the oracle",
        "Many definitions share a name; exclude copies and generated code (project.exclude).",
    ),
    "high_distractor_relevance": Reason(
        "a distractor is nearly a copy of an oracle",
        "Exclude copied code (project.exclude), or raise quality.max_distractor_relevance.",
    ),
    # -- preference pairs
    "same_answer": Reason("the rejected answer is the chosen one", AGAIN),
    "true_rejected": Reason("the rejected answer is true", AGAIN),
    "false_chosen": Reason("the chosen answer is not its example's", AGAIN),
    "unknown_prompt": Reason("no kept training row has the prompt of the pair", AGAIN),
}


def reason_of(message: str) -> str:
    """The word that a message begins with."""
    return message.partition(":")[0]
