"""SentencePiece tokenizers, from a tokenizer.json, in the terms of llama.cpp.

A BPE model of SentencePiece has a score for each token: of all neighbours whose joined text is a
token, those with the best score are joined first, the leftmost first among equals (Kudo and
Richardson, 2018; llama.cpp's `llm_tokenizer_spm`). The tokenizers library has a list of pairs
instead, joined in the order of the list. Converters made that list from the scores, so the scores
can be found again; where the list says something that no scores can say, it is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

BLANK = "▁"  # what stands for a blank in tokens
# Tokens whose pairs are mixed in the list are tried out in pairs; more than so many are refused.
MIXED_TRIED = 64
# As llama.cpp's converter writes them: of added tokens, and of rows that no token uses.
ADDED_SCORE, UNUSED_SCORE = -1000.0, -10000.0


BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}


class NoScores(ValueError):
    """The merges of a tokenizer say something that scores cannot say; tells what."""


def scores_of_merges(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    extracted: set[str],
    tokenize: Callable[[str], list[str]],
) -> dict[str, float]:
    """Scores under which joining the best pair gives what the list of merges gives.

    Where tokens follow each other in the vocabulary as they were learnt, the scores are those of
    SentencePiece itself: 0, -1, -2 … in the order of ids.

    Args:
        vocabulary: ids by token, without added tokens that are no tokens of the model.
        merges: pairs of tokens, the first to be joined first.
        extracted: tokens that are cut out of a text before any pair is joined.
        tokenize: tokens of a text by the list of merges.

    Returns:
        A score for each token that is neither a byte nor extracted.

    Raises:
        NoScores: the list cannot be said in scores.
    """
    plain = sorted(
        (token for token in vocabulary if token not in extracted and token not in BYTE_TOKENS),
        key=lambda token: vocabulary[token],
    )
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        joined = left + right
        if joined not in extracted:
            first.setdefault(joined, rank)
            last[joined] = rank
    _check_complete(vocabulary, set(merges), first.keys(), extracted)
    learnt = list(first)  # in the order of the list
    if all(vocabulary[a] < vocabulary[b] for a, b in itertools.pairwise(learnt)):
        order: Iterable[str] = plain
    else:
        order = [*learnt, *(token for token in plain if token not in first)]
    scores = {token: -float(place) for place, token in enumerate(order)}
    _try_mixed(learnt, first, last, scores, tokenize)
    return scores


def joined_by_scores(text: str, scores: dict[str, float]) -> list[str]:
    """Tokens of a text by scores: llama.cpp's rule, which is SentencePiece's."""
    parts = list(text)
    while True:
        best, place = -float("inf"), -1
        for index, (left, right) in enumerate(itertools.pairwise(parts)):
            score = scores.get(left + right, best)
            if score > best:
                best, place = score, index
        if place < 0:
            return parts
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _check_complete(
    vocabulary: dict[str, int],
    pairs: set[tuple[str, str]],
    formed: Iterable[str],
    extracted: set[str],
) -> None:
    """Scores join any two parts that make a token, so the list must join them all too."""
    parts = {*formed, *itertools.chain.from_iterable(vocabulary)}  # and any single character
    for token in vocabulary:
        if token in extracted:
            continue
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in parts and (right := token[cut:]) in parts and (left, right) not in pairs:
                raise NoScores(f"{left!r} and {right!r} are not joined although {token!r} is one")


def _try_mixed(
    learnt: list[str],
    first: dict[str, int],
    last: dict[str, int],
    scores: dict[str, float],
    tokenize: Callable[[str], list[str]],
) -> None:
    """Tokens with one score each have one place in the list each; try those that have not."""
    mixed: list[str] = []
    reach, before = -1, ""
    for token in learnt:
        if first[token] < reach:
            mixed += [part for part in (before, token) if part not in mixed]
        if last[token] > reach:
            reach, before = last[token], token
    if len(mixed) > MIXED_TRIED:
        raise NoScores(f"the pairs that make {mixed[0]!r} and {mixed[1]!r} are mixed")
    for pair in itertools.product(mixed, repeat=2):
        text = "".join(pair)
        if joined_by_scores(text, scores) != tokenize(text):
            raise NoScores(f"the pairs that make {pair[0]!r} and {pair[1]!r} are mixed")
