"""The gate between training and deployment: better than the base, not worse than what is deployed.

Everything is compared on the same questions, example by example, and counts only beyond the noise
(95% intervals of the paired difference). Against the base a tuned model must be better at what
neither the form of answers nor the words of this repository can give it: at reading. On held-out
files, whose documents are given, either the facts must have become more likely
(`fact_perplexity`), or more answers be right. A model that was trained on false answers has learnt
the form as well as another, but it does not read. In nothing of `WATCHED` may it be worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from forge_mcp.judging.answers import answer_metrics
from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import Floats, Indices, bootstrap, paired_difference
from forge_mcp.judging.knowledge import Likelihood
from forge_mcp.judging.perplexity import Perplexity
from forge_mcp.judging.results import (
    CONTESTANTS,
    LOWER_IS_BETTER,
    Comparison,
    Contestant,
    ScoredAnswer,
    SectionName,
)
from forge_mcp.schemas.base import Metric

BOOKS: tuple[SectionName, ...] = ("open_book", "closed_book")
READS = ("open_book.fact_perplexity", "open_book.answer_accuracy")  # one of them must be better
KNOWS = "closed_book.fact_perplexity"  # must be better than a control's
WATCHED = (*READS, "closed_book.answer_accuracy", "closed_book.fact_choice")  # none may be worse
# Beside these, what a model that is in use must not lose either.
WATCHED_DEPLOYED = (*WATCHED, KNOWS, "open_book.hallucination_rate")


@dataclass(frozen=True)
class Answers:
    """A contestant's answers to the cases of a section."""

    cases: list[Case]
    scored: list[ScoredAnswer]

    def only(self, ids: Set[str]) -> Answers:
        """Those to the cases whose id is in `ids`."""
        kept = [i for i, case in enumerate(self.cases) if case.example.id in ids]
        return Answers([self.cases[i] for i in kept], [self.scored[i] for i in kept])

    @property
    def by_id(self) -> dict[str, ScoredAnswer]:
        """The answers by the id of their case."""
        return {
            case.example.id: answer for case, answer in zip(self.cases, self.scored, strict=True)
        }


@dataclass
class Paper:
    """What one contestant handed in. `name`: which model it is; `written`: the functions."""

    contestant: Contestant
    name: str
    likelihood: dict[SectionName, Likelihood] = field(default_factory=dict)
    answers: dict[SectionName, Answers] = field(default_factory=dict)
    others: dict[SectionName, list[Metric]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def metrics(self, section: SectionName, seed: int) -> list[Metric]:
        """All that was measured in a section, with 95% intervals."""
        found = []
        if section in self.likelihood:
            found += self.likelihood[section].metrics(seed)
        if section in self.answers:
            found += answer_metrics(self.answers[section].cases, self.answers[section].scored)
        return found + self.others.get(section, [])

    @property
    def not_finite(self) -> int:
        """How many answers have a likelihood that is no number, or none at all."""
        return sum(
            int((~np.isfinite(one.answers.per_example)).sum()) for one in self.likelihood.values()
        )


def compare(
    tuned: Paper,
    other: Paper,
    max_perplexity_ratio: float,
    seed: int,
    left_out: Set[str] = frozenset(),
) -> Comparison:
    """Hold the tuned model against another one.

    Args:
        tuned, other: on questions of which those that both were asked are compared.
        max_perplexity_ratio: what the ratio of fact perplexities must surely be below, to be
            better; 1 is the same.
        seed: of the resampling.
        left_out: ids of questions that the other was trained on.
    """
    # A limit above 1 lets a tuned model through that is not shown to be better than its base; what
    # knows no more than a control is not called better for it.
    limit = (
        min(max_perplexity_ratio, 1.0) if other.contestant == "control" else max_perplexity_ratio
    )
    differences = [
        metric
        for section in BOOKS
        for metric in _differences(tuned, other, section, seed, left_out)
    ]
    better = [m.name for m in differences if _gain(m, limit) > 0]
    worse = [m.name for m in differences if _gain(m, limit) < 0]
    return Comparison(
        against=other.contestant,
        differences=differences,
        better=better,
        worse=worse,
        reasons=_reasons(tuned, other, {m.name: m for m in differences}, better, worse, limit),
        n_left_out=len(left_out),
    )


def _reasons(
    tuned: Paper,
    other: Paper,
    found: dict[str, Metric],
    better: Sequence[str],
    worse: Sequence[str],
    limit: float,
) -> list[str]:
    """Why a comparison says no."""
    name = f"the {CONTESTANTS[other.contestant]} ({other.name})"
    reasons = [
        f"the perplexity of {CONTESTANTS[paper.contestant]} is not finite on {paper.not_finite} "
        "questions"
        for paper in (tuned, other)
        if paper.not_finite
    ]
    if reasons:
        return reasons
    if other.contestant == "base" and not set(READS) & set(better):
        said = "; ".join(_said(found[metric]) for metric in READS if metric in found)
        than = "not better than" if limit == 1 else f"not within {limit:g} times"
        reasons.append(
            f"it is {than} {name} beyond the noise at reading held-out files: "
            + (said or "no question could be compared")
        )
    if other.contestant == "control":
        if KNOWS not in better:
            said = _said(found[KNOWS]) if KNOWS in found else "no question could be compared"
            reasons.append(f"it does not know this repository better than {name}: {said}")
        return reasons
    watched = WATCHED_DEPLOYED if other.contestant == "deployed" else WATCHED
    reasons += [
        f"it is worse than {name} beyond the noise: {_said(found[metric])}"
        for metric in worse
        if metric in watched
    ]
    return reasons


def _said(metric: Metric) -> str:
    """A difference in words."""
    section, _, what = metric.name.partition(".")
    where = section.replace("_", "-")
    interval = f"(95%: {{}} to {{}}, n={metric.n})"
    if what in ("perplexity", "fact_perplexity"):
        numbers = interval.format(f"{metric.low:.3f}", f"{metric.high:.3f}")
        label = what.replace("_", " ")
        return f"{where} {label} × {metric.value:.3f} {numbers}"
    numbers = interval.format(f"{100 * metric.low:+.1f}", f"{100 * metric.high:+.1f}")
    return f"{where} {what.replace('_', ' ')} {100 * metric.value:+.1f} points {numbers}"


def _gain(metric: Metric, limit: float) -> int:
    """1 where a difference is for the better beyond the noise, -1 where for the worse, else 0."""
    what = metric.name.partition(".")[2]
    if what in ("perplexity", "fact_perplexity"):  # ratios
        return (metric.high < limit) - (metric.low > max(limit, 1.0))
    gain = (metric.low > 0) - (metric.high < 0)
    return -gain if what in LOWER_IS_BETTER else gain


def _differences(
    tuned: Paper, other: Paper, section: SectionName, seed: int, left_out: Set[str]
) -> list[Metric]:
    """The paired differences of a section, on what both were asked."""
    found: list[Metric] = []
    if section in tuned.likelihood and section in other.likelihood:
        ours, theirs = tuned.likelihood[section], other.likelihood[section]
        for name, mine, their in _likelihoods(ours, theirs, left_out):
            if np.isfinite([*mine.per_example, *their.per_example]).all():
                found.append(mine.ratio_to(their, seed, f"{section}.{name}"))
        both = [
            (theirs.chosen[their], ours.chosen[mine])
            for mine, their in _common(ours.ids, theirs.ids, left_out)
            if mine in ours.chosen and their in theirs.chosen
        ]
        if both:
            before, after = zip(*both, strict=True)
            found.append(paired_difference(f"{section}.fact_choice", before, after))
    if section in tuned.answers and section in other.answers:
        mine_by_id, their_by_id = tuned.answers[section].by_id, other.answers[section].by_id
        ids = [id for id in mine_by_id if id in their_by_id and id not in left_out]
        if ids:
            found.append(
                paired_difference(
                    f"{section}.answer_accuracy",
                    [their_by_id[id].right for id in ids],
                    [mine_by_id[id].right for id in ids],
                )
            )
            rate = _hallucination_difference(
                f"{section}.hallucination_rate",
                [their_by_id[id] for id in ids],
                [mine_by_id[id] for id in ids],
                seed,
            )
            found += [rate] if rate else []
    return found


def _likelihoods(
    ours: Likelihood, theirs: Likelihood, left_out: Set[str]
) -> list[tuple[str, Perplexity, Perplexity]]:
    """Answers and facts of both on what they have in common; what has nothing is absent."""
    pairs = _common(ours.ids, theirs.ids, left_out)
    found = []
    if pairs:
        mine, their = zip(*pairs, strict=True)
        found.append(("perplexity", ours.answers.select(mine), theirs.answers.select(their)))
    ids = [ours.fact_ids[at] for at, _ in _common(ours.fact_ids, theirs.fact_ids, left_out)]
    if ids:
        found.append(("fact_perplexity", ours.facts_of(ids), theirs.facts_of(ids)))
    return found


def _common(
    ours: Sequence[str], theirs: Sequence[str], left_out: Set[str]
) -> list[tuple[int, int]]:
    """Places of the ids that both have."""
    places = {id: at for at, id in enumerate(theirs)}
    return [(at, places[id]) for at, id in enumerate(ours) if id in places and id not in left_out]


def _hallucination_difference(
    name: str, before: Sequence[ScoredAnswer], after: Sequence[ScoredAnswer], seed: int
) -> Metric | None:
    """Hallucination rate after less that before, resampled by question; None without claims."""
    counts = np.array(
        [
            [len(b.unsupported), b.claims, len(a.unsupported), a.claims]
            for b, a in zip(before, after, strict=True)
        ],
        dtype=np.float64,
    )
    if not counts[:, 1].any() or not counts[:, 3].any():
        return None

    def difference(indices: Indices) -> Floats:
        summed = counts[indices].sum(axis=1)
        # A sample without a claim invents nothing.
        gained: Floats = summed[:, 2] / np.maximum(summed[:, 3], 1) - summed[:, 0] / np.maximum(
            summed[:, 1], 1
        )
        return gained

    return bootstrap(name, len(before), seed, difference)


def improvement(
    base: Mapping[SectionName, list[Metric]], tuned: Mapping[SectionName, list[Metric]]
) -> dict[str, float]:
    """Improvement over the base in percent of the base's value, positive where tuned is better.

    Args:
        base, tuned: the metrics of each section.

    Returns:
        By `metric_key`. A metric that the base has at 0, or that one of the two lacks, has no such
        figure and is absent.
    """
    gains = {}
    for section, metrics in tuned.items():
        before = {metric.name: metric.value for metric in base.get(section, [])}
        for metric in metrics:
            old = before.get(metric.name)
            if old:
                change = 100 * (metric.value - old) / old
                sign = -1 if metric.name in LOWER_IS_BETTER else 1
                gains[metric_key(section, metric.name)] = sign * change
    return gains


def metric_key(section: str, name: str) -> str:
    """The name of a metric in results: that of open-book questions alone, others with theirs."""
    return name if section == "open_book" else f"{section}.{name}"
