"""CodeBLEU: how near generated code is to reference code, by words, syntax and data flow; 0 to 1.

Ren et al. 2020, "CodeBLEU: a Method for Automatic Evaluation of Code Synthesis" (arXiv 2009.10297):

    score = w1 · n-gram match + w2 · weighted n-gram match
          + w3 · syntax match + w4 · data-flow match

    ngrams.py    BLEU over the words between white space, and with keywords weighing more
    syntax.py    the share of the reference's sub-trees that the prediction has
    dataflow.py  the share of the edges from a value to where it comes from; walks.py finds them
    source.py    comments and docstrings are left out of both trees, not of the words
    keywords.py, rules.py   what is known of each language

Every part is the one that the `codebleu` package 0.7.0 computes with the same grammars, so also:

- The weighted n-gram match has no penalty for brevity: each reference counts as two words long.
- A text of fewer than four words is not 1 like itself, having no 4-grams; see also ngrams.py.
- Comments are found by a pattern, which takes `//` in a JavaScript template for one, for instance.
- Python of which one statement is like `self.name = "text"` has no data flow at all: the package
  fails at it, since both sides have three children, and goes on without (so it is with 3 of 1,157
  functions from the standard library). See walks.py for what it leaves out of other languages.

What differs from the package, and why:

- A data-flow match of 0 counts as 0. The package counts it as 1, so that a prediction that has
  none of the reference's data flow scores higher than one that has some.
- Where no reference has data flow, that match is None and its weight is spread over the other
  parts. The package gives 0, with a warning, and counts it as 1.
- The order of a token's sources is that of the text. The package takes the order of a Python set,
  so that its data-flow match is another in some runs (PYTHONHASHSEED).
- Tokens are cut by bytes, as the trees are. The package cuts strings of characters at byte
  offsets: what follows a character that is not ASCII, in its line, is shifted.
- Nothing nests too deep: the package has no data flow of a text deeper than Python recurses (about
  1,000), takes 2^n walks for n nested loops, and crashes on tens of thousands of nested brackets.
- TypeScript and TSX, which the package does not know: JavaScript's keywords and TypeScript's own,
  and JavaScript's data flow, in which default values of parameters have TypeScript's node types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forge_mcp.errors import BadInput
from forge_mcp.judging.codebleu import dataflow, syntax
from forge_mcp.judging.codebleu.keywords import KEYWORDS
from forge_mcp.judging.codebleu.ngrams import Shares, bleu, precisions, weighted_recalls
from forge_mcp.judging.codebleu.source import parse

LANGUAGES: tuple[str, ...] = tuple(KEYWORDS)
EQUAL_WEIGHTS = (0.25, 0.25, 0.25, 0.25)
_TYPESCRIPT = (
    "The codebleu package has no TypeScript: keywords and data flow are JavaScript's and our "
    "additions."
)
_C = "Data flow of C and C++ is, as in the codebleu package, that of assignments and uses only."
_NOTES = {
    "typescript": _TYPESCRIPT,
    "tsx": _TYPESCRIPT,
    "rust": "Data flow of a Rust function is, as in the codebleu package, that of its parameters.",
    "c": _C,
    "cpp": _C,
}

Weights = tuple[float, float, float, float]


@dataclass(frozen=True)
class CodeBleu:
    """CodeBLEU of `n` pairs and its four parts, each from 0 to 1.

    `dataflow` is None where no reference has data flow; its weight is then spread over the other
    three parts in proportion to theirs. `note` says so, and what else is particular to the figure
    (sentences; "" where nothing is).
    """

    score: float
    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None
    n: int
    note: str


@dataclass(frozen=True)
class Counts:
    """What one pair adds to CodeBLEU: each a count of what matches, and of how much."""

    language: str
    ngrams: Shares
    weighted_ngrams: Shares
    prediction_words: int
    reference_words: int
    sub_trees: tuple[int, int]
    edges: tuple[int, int]


def compute_codebleu(
    predictions: Sequence[str],
    references: Sequence[str],
    language: str,
    weights: Weights = EQUAL_WEIGHTS,
) -> CodeBleu:
    """CodeBLEU of predictions, each with one reference: the counts of all pairs are summed first.

    Args:
        predictions: generated code; any text, also an empty one.
        references: the code that each should be like, in the same order.
        language: one of `LANGUAGES`, of all of them.
        weights: of n-gram, weighted n-gram, syntax and data-flow match; they add up to 1.

    Raises:
        BadInput: no pairs, not as many predictions as references, a language that is not known,
            impossible weights, or all of the weight on data flow of which the references have none.
        Unavailable: the language's grammar is not installed.
    """
    if len(predictions) != len(references):
        raise BadInput(
            f"{len(predictions)} predictions cannot be compared with {len(references)} references.",
            cause="CodeBLEU compares each prediction with the reference at the same place",
            next_step="Give as many references as predictions, in the same order.",
        )
    pairs = zip(predictions, references, strict=True)
    return total(
        [count(prediction, reference, language) for prediction, reference in pairs], weights
    )


def codebleu_of(prediction: str, reference: str, language: str) -> CodeBleu:
    """CodeBLEU of one pair with equal weights; see `compute_codebleu`."""
    return compute_codebleu([prediction], [reference], language)


def count(prediction: str, reference: str, language: str) -> Counts:
    """What one pair adds. `total` of many is their CodeBLEU, of whatever languages they are.

    Raises:
        BadInput: the language is none of `LANGUAGES`.
        Unavailable: its grammar is not installed.
    """
    if language not in KEYWORDS:
        raise BadInput(
            f"CodeBLEU is not known for the language '{language}'.",
            cause=f"known languages: {', '.join(LANGUAGES)}",
            next_step="Give one of them.",
        )
    ours, theirs = prediction.split(), reference.split()
    our_tree, their_tree = parse(prediction.strip(), language), parse(reference.strip(), language)
    return Counts(
        language=language,
        ngrams=precisions(ours, theirs),
        weighted_ngrams=weighted_recalls(ours, theirs, KEYWORDS[language]),
        prediction_words=len(ours),
        reference_words=len(theirs),
        sub_trees=syntax.matches(our_tree[0], their_tree[0]),
        edges=dataflow.matches(our_tree, their_tree, language),
    )


def total(counts: Sequence[Counts], weights: Weights = EQUAL_WEIGHTS) -> CodeBleu:
    """CodeBLEU of all pairs that were counted.

    Raises:
        BadInput: no pairs, impossible weights, or all of the weight on data flow of which the
            references have none.
    """
    _check_weights(weights)
    if not counts:
        raise BadInput(
            "CodeBLEU of no pairs cannot be computed.",
            cause="there is neither a prediction nor a reference",
            next_step="Give at least one pair.",
        )
    words = sum(one.prediction_words for one in counts)
    reference_words = sum(one.reference_words for one in counts)
    ngram = bleu(_summed([one.ngrams for one in counts]), words, reference_words)
    # As in the package, to which a reference is a list of two things: its words and their weights.
    weighted = bleu(_summed([one.weighted_ngrams for one in counts]), words, 2 * len(counts))
    matched, sub_trees = _summed([[one.sub_trees] for one in counts])[0]
    shared, edges = _summed([[one.edges] for one in counts])[0]
    parts = (ngram, weighted, matched / sub_trees)
    notes = list(dict.fromkeys(_NOTES[one.language] for one in counts if one.language in _NOTES))
    flow = shared / edges if edges else None
    if flow is None:
        rest = math.fsum(weights[:3])
        if rest == 0:
            raise BadInput(
                "CodeBLEU cannot be computed: all of its weight is on the data-flow match.",
                cause="no reference has data flow",
                next_step="Give the other parts some weight.",
            )
        score = math.fsum(w * part for w, part in zip(weights[:3], parts, strict=True)) / rest
        notes.append(
            "No reference has data flow: its weight is spread over the other three parts (the "
            "codebleu package counts it as a full match)."
        )
    else:
        score = math.fsum(w * part for w, part in zip(weights, (*parts, flow), strict=True))
        if flow == 0:
            notes.append(
                "None of the references' data flow is matched, which counts as 0 (the codebleu "
                "package counts it as a full match)."
            )
    # Weights that add up to 1 but for rounding may give a little more.
    return CodeBleu(min(1.0, score), *parts, flow, len(counts), " ".join(notes))


def _check_weights(weights: Weights) -> None:
    usable = len(weights) == 4 and all(math.isfinite(w) and w >= 0 for w in weights)
    if not usable or not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        raise BadInput(
            f"{weights} cannot be the weights of CodeBLEU.",
            cause="they are those of its four parts and add up to 1, none below 0",
            next_step="Give e.g. (0.25, 0.25, 0.25, 0.25), or (0.1, 0.1, 0.4, 0.4).",
        )


def _summed(pairs: Sequence[Sequence[tuple[float, float]]]) -> Shares:
    """For each order, or kind of count: what matched, and of how much, over all pairs."""
    return [
        (sum(matched for matched, _ in order), sum(whole for _, whole in order))
        for order in zip(*pairs, strict=True)
    ]
