"""Plant every fault on good examples, have the validator judge them, and count what it told.

    trial = run_trial(examples, documents, settings.quality)
    trial.auc, trial.unseen(0.8), trial.good_dropped

Several faults are planted in one dataset at a time, on examples that share no document with a
document that was broken, so that each is judged for itself and the dataset around stays good.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planted_faults import FAULTS, Broken, Fault, World, draw

from forge_mcp.quality import validate_dataset
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import RaftExample
from forge_mcp.settings import QualitySettings


@dataclass(frozen=True)
class Case:
    """A fault on one example of the dataset, which stands at `index`."""

    fault: Fault
    index: int
    broken: Broken


@dataclass(frozen=True)
class Outcome:
    """How a case was judged: dropped, and its score beside that of its original."""

    case: Case
    dropped: bool
    score: float
    original: float
    reasons: tuple[str, ...]

    @property
    def told(self) -> bool:
        """Whether the fault made a difference: dropped, or a lower score."""
        return self.dropped or self.score < self.original - 1e-9


@dataclass
class Trial:
    """What came out.

    Attributes:
        good: scores of the examples as they were generated.
        good_dropped: those of them that the filter dropped, with its reasons.
        outcomes: of every planted fault.
        not_planted: names of faults that no example of this dataset can have.
    """

    good: list[float]
    good_dropped: list[tuple[RaftExample, list[str]]]
    outcomes: list[Outcome]
    not_planted: list[str] = field(default_factory=list)

    def by_kind(self) -> dict[str, list[Outcome]]:
        """Outcomes by the fault's name."""
        kinds: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            kinds[outcome.case.fault.name].append(outcome)
        return dict(kinds)

    def auc(self) -> float:
        """Of the score: how often a good example is above one that is broken in itself."""
        broken = [o.score for o in self.outcomes if o.case.fault.level == "example"]
        return rank_auc(self.good, broken)

    def unseen(self, least: float = 0.8) -> dict[str, float]:
        """Kinds of which less than `least` of the cases were told, with the share that was."""
        shares = {
            name: sum(o.told for o in outcomes) / len(outcomes)
            for name, outcomes in self.by_kind().items()
        }
        return {name: share for name, share in sorted(shares.items()) if share < least}

    def table(self) -> str:
        """A line of Markdown for each kind."""
        lines = [
            "| fault | planted | dropped | told | mean score |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, outcomes in sorted(self.by_kind().items()):
            dropped, told = sum(o.dropped for o in outcomes), sum(o.told for o in outcomes)
            mean = sum(o.score for o in outcomes) / len(outcomes)
            lines.append(f"| {name} | {len(outcomes)} | {dropped} | {told} | {mean:.2f} |")
        return "\n".join(lines)


def rank_auc(above: Sequence[float], below: Sequence[float]) -> float:
    """Share of pairs in which the first is larger, ties counting half (Mann-Whitney U)."""
    ordered = sorted(below)
    wins = sum((bisect_left(ordered, x) + bisect_right(ordered, x)) / 2 for x in above)
    return wins / (len(above) * len(below))


def plan(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    usable: Sequence[int],
    cases_per_kind: int,
    seed: str = "faults",
) -> tuple[list[Case], list[str]]:
    """Cases of every fault on drawn examples, and the faults that fit none of them."""
    world = World(documents, examples)
    cases: list[Case] = []
    nowhere: list[str] = []
    for fault in FAULTS:
        order = sorted(usable, key=lambda index: draw(f"{seed} {fault.name} {index}", 1 << 60))
        planted = 0
        for index in order:
            broken = fault.plant(examples[index], world)
            if broken is not None:
                cases.append(Case(fault, index, broken))
                planted += 1
            if planted == cases_per_kind:
                break
        if not planted:
            nowhere.append(fault.name)
    return cases, nowhere


def rounds(cases: Sequence[Case], examples: Sequence[RaftExample], most: int) -> list[list[Case]]:
    """Cases that can stand in one dataset together, at most `most` a dataset."""
    packed: list[tuple[list[Case], set[int], set[str], set[str]]] = []
    for case in cases:
        example = examples[case.index]
        own = {*example.oracle_ids, *example.distractor_ids, example.fact.block}
        own |= {*case.broken.example.oracle_ids, *case.broken.example.distractor_ids}
        for together, indices, shown, broken in packed:
            if (
                len(together) < most
                and case.index not in indices
                and not own & broken
                and not (shown & case.broken.documents.keys())
            ):
                break
        else:
            together, indices, shown, broken = [], set(), set(), set()
            packed.append((together, indices, shown, broken))
        together.append(case)
        indices.add(case.index)
        shown.update(own)
        broken.update(case.broken.documents)
    return [together for together, _, _, _ in packed]


def run_trial(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    settings: QualitySettings,
    cases_per_kind: int = 4,
    share: float = 0.15,
) -> Trial:
    """Judge the examples as they are, then with every fault planted.

    Args:
        examples: good ones, of a generator.
        documents: by id.
        settings: the quality section.
        cases_per_kind: examples on which each fault is planted.
        share: of the examples of a dataset that are broken at a time, at most.
    """
    clean = validate_dataset(examples, documents, settings)
    assert [judged.example.id for judged in clean.judged] == [e.id for e in examples]
    usable = [index for index, judged in enumerate(clean.judged) if not judged.reasons]
    cases, nowhere = plan(examples, documents, usable, cases_per_kind)
    outcomes: list[Outcome] = []
    for together in rounds(cases, examples, max(1, int(len(examples) * share))):
        rows = list(examples)
        changed = dict(documents)
        places: list[int] = []
        for case in together:
            changed |= case.broken.documents
            if case.broken.beside:
                places.append(len(rows))
                rows.append(case.broken.example)
            else:
                places.append(case.index)
                rows[case.index] = case.broken.example
        judged = validate_dataset(rows, changed, settings).judged
        for case, place in zip(together, places, strict=True):
            mine = judged[place]
            reasons = [*mine.reasons]
            if case.fault.level == "dataset":  # which of the two goes is the validator's choice
                reasons += judged[case.index].reasons
                identity = case.broken.example.id
                reasons += [r for j in judged if j.example.id == identity for r in j.reasons]
            outcomes.append(
                Outcome(
                    case,
                    dropped=bool(reasons),
                    score=mine.score.value,
                    original=clean.judged[case.index].score.value,
                    reasons=tuple(reasons),
                )
            )
    return Trial(
        good=[judged.score.value for judged in clean.judged],
        good_dropped=[(j.example, j.reasons) for j in clean.judged if j.reasons],
        outcomes=outcomes,
        not_planted=nowhere,
    )
