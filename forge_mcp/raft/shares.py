"""Which rows are what: the shares of code-writing, closed-book and oracle-absent rows, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from forge_mcp.raft.pairs import CODE_KINDS, OPEN_ONLY, QAPair, closed, gives_away, kept_back
from forge_mcp.raft.splits import draw
from forge_mcp.schemas.raft_examples import Difficulty, RaftExample, Split
from forge_mcp.settings import RaftSettings

HARD_DISTRACTORS = 3  # at least, in a hard example
HARD_SHARE = 0.15  # of the open-book rows, at least
CONDITIONAL = frozenset({"guard", "returns_when"})  # a case has to be told from the others


def difficulty_of(example: RaftExample) -> Difficulty:
    """How hard an example is, by construction.

    easy: one document that answers and no other, or a closed-book question.
    medium: one or two distractors, or a condition, or a relationship of several oracles.
    hard: three distractors or more.
    """
    if example.closed_book:
        return "easy"
    beside = len(example.distractor_ids)
    if beside >= HARD_DISTRACTORS:
        return "hard"
    alone = beside == 0 and len(example.oracle_ids) == 1
    return "easy" if alone and example.fact.kind not in CONDITIONAL | {"code"} else "medium"


def with_code(
    facts: Sequence[Sequence[QAPair]],
    code: Sequence[Callable[[bool], QAPair | None]],
    settings: RaftSettings,
) -> list[QAPair]:
    """The pairs of every block, with code-writing ones in the wanted share of all.

    Args:
        facts: the other pairs, block by block.
        code: makes the code-writing pair of each of these blocks, or None; called with whether
            the whole body is wanted rather than a call. It takes the place of the last pair where
            the block has as many as it may.
        settings: the raft section.
    """
    chosen = [list(pairs) for pairs in facts]
    total = sum(len(pairs) for pairs in chosen)
    order = sorted(range(len(code)), key=lambda at: draw(settings.seed, "code", at))
    written: set[tuple[str, str, str]] = set()
    for again_asked in (False, True):  # a second time where the first is not enough
        for at in order:
            full = len(chosen[at]) >= settings.examples_per_block
            after = total + (not full)
            if len(written) + 1 > round(settings.code_share * after):
                break
            # The body and a call by turns; of a block that has one of them, the other.
            have = {pair.fact.kind for pair in chosen[at]}
            whole = "code" not in have if again_asked else len(written) % 2 == 0
            pair = code[at](whole)
            room = len(have.intersection(CODE_KINDS)) < settings.examples_per_block
            if pair is not None and room and _key(pair) not in written:
                chosen[at] = [pair, *chosen[at][: settings.examples_per_block - 1]]
                written.add(_key(pair))
                total = after
    return [pair for pairs in chosen for pair in pairs]


def close(pairs: Sequence[QAPair], settings: RaftSettings) -> list[QAPair]:
    """The training pairs, of which the wanted share is asked without documents.

    A fact that is also asked with its documents goes first.
    """
    wanted = round(settings.closed_book_share * len(pairs))
    wanted -= sum(pair.closed_book for pair in pairs)
    open_questions = [n for n, p in enumerate(pairs) if _closable(p)]
    asked: set[tuple[str, str, str]] = set()
    repeated = []
    for number in open_questions:
        key = _key(pairs[number])
        if key in asked:
            repeated.append(number)
        asked.add(key)
    often = set(repeated)
    rows = sorted(
        open_questions,
        key=lambda n: (n not in often, draw(settings.seed, "closed", pairs[n].question)),
    )
    chosen = set(rows[: max(0, wanted)])
    return [closed(pair) if n in chosen else pair for n, pair in enumerate(pairs)]


def held_out_closed(
    pairs: Sequence[QAPair],
    trained: Sequence[QAPair],
    split: Split,
    settings: RaftSettings,
) -> list[QAPair]:
    """The pairs of a held-out split, of which the wanted share asks about trained blocks.

    Those are closed-book questions in the phrasing that no training row has; valid and test ask
    about different facts, first about those that are trained without documents too. They take the
    place of as many pairs of the split.
    """
    facts: dict[tuple[str, str, str], QAPair] = {}
    recalled = [pair for pair in trained if pair.closed_book and pair.fact.kind != "code"]
    for pair in [*recalled, *(pair for pair in trained if _closable(pair))]:
        facts.setdefault(_key(pair), pair)
    first = len({_key(pair) for pair in recalled})
    mine = [
        (number >= first, draw(settings.seed, split, *key), pair)
        for number, (key, pair) in enumerate(facts.items())
        if draw(settings.seed, "held out", *key) % 2 == (split == "test")
    ]
    mine.sort(key=lambda one: one[:2])
    asked = (kept_back(pair) for *_, pair in mine)
    fitting = (pair for pair in asked if not gives_away(pair))
    chosen = list(islice(fitting, round(settings.closed_book_share * len(pairs))))
    order = sorted(  # code-writing pairs stay, so that their share does too
        range(len(pairs)),
        key=lambda n: (
            pairs[n].fact.kind not in CODE_KINDS,
            draw(settings.seed, split, pairs[n].question),
        ),
    )
    kept = sorted(order[: len(pairs) - len(chosen)])
    return [pairs[n] for n in kept] + chosen


def wanted_distractors(pairs: Sequence[QAPair], settings: RaftSettings) -> list[int]:
    """How many distractors each pair gets.

    Questions on several documents get `HARD_DISTRACTORS` or more; the others none, some or
    `settings.distractors`, by turns; where the first are few, some of the others get more too.
    """
    usual = settings.distractors
    if not usual:
        return [0] * len(pairs)
    most = max(HARD_DISTRACTORS, usual + 1)
    open_rows = [n for n, pair in enumerate(pairs) if not pair.closed_book]
    several = [n for n in open_rows if len(pairs[n].oracles) > 1]
    single = [n for n in open_rows if len(pairs[n].oracles) == 1]
    more = max(0, round(HARD_SHARE * len(open_rows)) - len(several))
    single.sort(key=lambda n: draw(settings.seed, "hard", pairs[n].question))
    harder = set(single[:more])
    steps = (0, usual, max(1, usual - 1), usual)
    counts = [0] * len(pairs)
    for n in open_rows:
        if len(pairs[n].oracles) > 1 or n in harder:
            counts[n] = most
        else:
            counts[n] = steps[draw(settings.seed, "beside", pairs[n].question) % len(steps)]
            if pairs[n].fact.kind in CONDITIONAL | {"code"}:
                counts[n] = max(1, counts[n])
    return counts


def _closable(pair: QAPair) -> bool:
    """Whether a pair may be asked without documents."""
    kind = pair.fact.kind
    return (
        not pair.closed_book
        and len(pair.oracles) == 1
        and kind not in OPEN_ONLY
        and kind not in CODE_KINDS
    )


def _key(pair: QAPair) -> tuple[str, str, str]:
    return (pair.fact.kind, pair.fact.block, pair.fact.subject)
