"""BLEU over words separated by white space, and BLEU whose single words are weighted by keywords.

BLEU (Papineni et al. 2002) of a corpus: the geometric mean of the precisions of 1- to 4-grams times
a penalty for brevity, all counts summed over the pairs first. Where no n-gram of an order matches,
0.1 is put for the count of 0 (smoothing method 1 of Chen and Cherry 2014, as in NLTK).

The weighted match (Ren et al. 2020, section 3.1) counts for every n-gram of the *reference* whether
the prediction has it, a recall; among single words a keyword counts 1, any other 0.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = (1, 2, 3, 4)
OTHER_WORD = 0.2  # weight of a word that is no keyword
_UNSEEN = 0.1  # put for the count of an order of which no n-gram matches

Words = Sequence[str]
Shares = list[tuple[float, float]]  # for each order: what matched, and of how much


def precisions(prediction: Words, reference: Words) -> Shares:
    """For each order: n-grams of the prediction that the reference has, and of how many."""
    shares: Shares = []
    for order in ORDERS:
        ours, theirs = _ngrams(prediction, order), _ngrams(reference, order)
        shares.append(((ours & theirs).total(), max(1, ours.total())))
    return shares


def weighted_recalls(prediction: Words, reference: Words, keywords: frozenset[str]) -> Shares:
    """For each order: n-grams of the reference that the prediction has, and of how many.

    Single words by their weights. A whole of less than 1 counts as 1: a reference of fewer than
    five words, none of them a keyword, is never matched in full.
    """
    shares: Shares = []
    for order in ORDERS:
        ours, theirs = _ngrams(prediction, order), _ngrams(reference, order)
        matched, whole = 0.0, 0.0
        for ngram, count in theirs.items():
            weight = OTHER_WORD if order == 1 and ngram[0] not in keywords else 1.0
            matched += min(count, ours[ngram]) * weight
            whole += count * weight
        shares.append((matched, max(1.0, whole)))
    return shares


def bleu(shares: Shares, prediction_words: int, reference_words: int) -> float:
    """BLEU of summed shares: 0 to 1; 0 where not a single word matches.

    Args:
        shares: (matched, of how much) for each order, summed over the pairs.
        prediction_words: number of words of all predictions.
        reference_words: number of words of all references.
    """
    if shares[0][0] == 0:
        return 0.0
    logarithms = (math.log((matched or _UNSEEN) / whole) for matched, whole in shares)
    brevity = min(0.0, 1 - reference_words / prediction_words)
    return math.exp(brevity + math.fsum(logarithms) / len(ORDERS))


def _ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
