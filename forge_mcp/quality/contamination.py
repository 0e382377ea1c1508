"""Whether training data holds HumanEval, so that its results would mean nothing.

As the GPT-3 paper (arXiv 2005.14165, appendix C) has it: 13 words in a row that a benchmark's
problem and a text share. The problems are read from a file that the user gives; they are not part
of this project.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path

from forge_mcp.errors import BadInput

WORDS = 13
_WORD = re.compile(r"\w+")


def grams(text: str) -> set[int]:
    """Hashes of all runs of `WORDS` words of a text; none where it has fewer."""
    found = [word.lower() for word in _WORD.findall(text)]
    return {hash(tuple(found[i : i + WORDS])) for i in range(len(found) - WORDS + 1)}


def load_humaneval(path: Path) -> frozenset[int]:
    """The 13-grams of a HumanEval file (HumanEval.jsonl or HumanEval.jsonl.gz).

    Raises:
        BadInput: it cannot be read, or is something else; the line is named.
    """
    number = 0
    found: set[int] = set()
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                number += 1
                problem = json.loads(line)
                for part in ("prompt", "canonical_solution"):
                    found |= grams(problem[part])
                found |= grams(problem["prompt"] + problem["canonical_solution"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"The HumanEval problems {path} cannot be read.",
            cause=f"line {number}: {error!r}" if number else str(error),
            next_step="Set quality.humaneval_path to HumanEval.jsonl.gz as openai/human-eval "
            'has it, or to "" to do without this check.',
        ) from error
    if not found:
        raise BadInput(
            f"The file {path} holds no HumanEval problem.",
            cause="no line has a prompt",
            next_step="Set quality.humaneval_path to HumanEval.jsonl.gz as openai/human-eval "
            'has it, or to "" to do without this check.',
        )
    return frozenset(found)


class Contamination:
    """Looks for the problems of a benchmark in texts; documents are looked at once."""

    def __init__(self, problems: frozenset[int]) -> None:
        self._problems = problems
        self._documents: dict[str, bool] = {}

    def in_text(self, text: str) -> bool:
        """Whether a text shares 13 words in a row with a problem."""
        return not self._problems.isdisjoint(grams(text))

    def in_document(self, content_hash: str, source: str) -> bool:
        """The same for a document's code."""
        if content_hash not in self._documents:
            self._documents[content_hash] = self.in_text(source)
        return self._documents[content_hash]
