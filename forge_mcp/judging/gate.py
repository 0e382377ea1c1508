"""The gate between training and deployment: a tuned model must not be worse.

Against the base, and against the model that is deployed where there is one, on the same examples:

1. its perplexity over theirs is at most `max_perplexity_ratio` (default 1.0);
2. its answer accuracy is not below theirs beyond the noise: the 95% interval of the paired
   difference must reach 0.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from forge_mcp.judging.answers import ScoredAnswer, answer_metrics
from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import paired_difference
from forge_mcp.judging.perplexity import Perplexity
from forge_mcp.schemas.base import Metric, Schema

Role = Literal["base", "tuned", "deployed"]
LOWER_IS_BETTER = frozenset(
    {"perplexity", "bits_per_byte", "false_abstention_rate", "hallucination_rate"}
)


@dataclass(frozen=True)
class Contestant:
    """One model's results: the likelihood of `scored` cases, and the answers to `asked` ones.

    role: "base", "tuned" or "deployed"; name: which model that is.
    """

    role: Role
    name: str
    scored: list[Case]
    perplexity: Perplexity
    asked: list[Case]
    answers: list[ScoredAnswer]

    def metrics(self, seed: int) -> list[Metric]:
        """Everything measured, with 95% intervals."""
        return self.perplexity.metrics(seed) + answer_metrics(self.asked, self.answers)

    def only(self, ids: Set[str]) -> Contestant:
        """The same on those examples alone whose id is in `ids`."""
        scored = [i for i, case in enumerate(self.scored) if case.example.id in ids]
        asked = [i for i, case in enumerate(self.asked) if case.example.id in ids]
        return replace(
            self,
            scored=[self.scored[i] for i in scored],
            perplexity=self.perplexity.select(scored),
            asked=[self.asked[i] for i in asked],
            answers=[self.answers[i] for i in asked],
        )


class Comparison(Schema):
    """The tuned model against one other, paired by example.

    `perplexity_ratio` is null where a perplexity is not finite; `reasons` say why it fails.
    """

    against: str
    perplexity_ratio: Metric | None
    accuracy_difference: Metric
    reasons: list[str]


def compare(
    tuned: Contestant, other: Contestant, max_perplexity_ratio: float, seed: int
) -> Comparison:
    """Hold the tuned model against another that was asked the same examples.

    A perplexity that is not finite fails whatever the limit.
    """
    name = f"the {other.role} ({other.name})"
    reasons = [
        f"the perplexity of {contestant.role} is not finite on {count} of "
        f"{len(contestant.scored)} examples"
        for contestant in (tuned, other)
        if (count := int((~np.isfinite(contestant.perplexity.per_example)).sum()))
    ]
    ratio = None if reasons else tuned.perplexity.ratio_to(other.perplexity, seed)
    if ratio and ratio.value > max_perplexity_ratio:
        reasons.append(
            f"perplexity is {ratio.value:.3f} times that of {name} "
            f"(95%: {ratio.low:.3f} to {ratio.high:.3f}, n={ratio.n}); "
            f"at most {max_perplexity_ratio:g} is allowed"
        )
    difference = paired_difference(
        "accuracy_difference",
        [answer.right for answer in other.answers],
        [answer.right for answer in tuned.answers],
    )
    if difference.high < 0:
        reasons.append(
            f"answer accuracy is {-100 * difference.value:.1f} points below that of {name} "
            f"(95%: {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, "
            f"n={difference.n})"
        )
    return Comparison(
        against=other.role,
        perplexity_ratio=ratio,
        accuracy_difference=difference,
        reasons=reasons,
    )


def improvement(base: Sequence[Metric], tuned: Sequence[Metric]) -> dict[str, float]:
    """Improvement over the base in percent of the base's value, positive where tuned is better.

    A metric that the base has at 0, or that one of the two lacks, has no such figure and is absent.
    """
    before = {metric.name: metric.value for metric in base}
    gains = {}
    for metric in tuned:
        old = before.get(metric.name)
        if old:
            change = 100 * (metric.value - old) / old
            gains[metric.name] = -change if metric.name in LOWER_IS_BETTER else change
    return gains
