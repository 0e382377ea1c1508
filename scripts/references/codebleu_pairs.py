"""What the `codebleu` package says of more than 2,000 pairs of functions: codebleu.json.gz.

The references are the functions of codebleu_samples.py, the predictions what a model might make of
them: names changed, lines missing or moved, other operators, cut short, another function, nothing.

The package runs unchanged on today's tree-sitter, though it asks for tree-sitter < 0.23: it is
installed without its dependencies. One thing is replaced in it. It takes the names of what a token
comes from in the order of a set of strings, which is another in every process, and so is now and
then its data-flow match; here sets keep the order in which they were filled. `stable` says of which
pairs the package as it is gives that same number under each of HASH_SEEDS.

    versions    of the package, tree-sitter, the grammars and Python
    references  all references, and of each whether it has data flow at all
    pairs       language, mutation, number of the reference, prediction, [codebleu, n-gram,
                weighted n-gram, syntax, data-flow match], stable
    corpora     by language: the same five numbers of all its pairs at once, with WEIGHTS
    keywords    by language: SHA-256 of the package's keywords, sorted, with spaces between
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from codebleu_samples import SAMPLES

SEED = 29
HASH_SEEDS = range(6)
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
DECIMALS = 11
PARTS = ("codebleu", "ngram_match_score", "weighted_ngram_match_score", "syntax_match_score")
OPERATORS = ("+", "-", "*", "/", "<", ">", "<=", ">=", "==", "!=", "+=", "-=", "=", "&&", "||")
PROSE = "Sure! Here is the function that you asked for, it is quite short."
GRAMMARS = ("c", "cpp", "go", "java", "javascript", "python", "rust")

Mutation = Callable[[str, random.Random], str]


def renamed(text: str, rng: random.Random) -> str:
    """One word of the text becomes another, everywhere."""
    words = sorted(set(re.findall(r"\b[a-z_]\w*", text)))
    return re.sub(rf"\b{rng.choice(words)}\b", rng.choice([*words, "other"]), text)


def with_new_names(text: str, rng: random.Random) -> str:
    """Some words become new ones, everywhere."""
    words = sorted(set(re.findall(r"\b[a-z_]\w*", text)))
    for number, word in enumerate(rng.sample(words, min(4, len(words)))):
        text = re.sub(rf"\b{word}\b", f"name{number}", text)
    return text


def without_line(text: str, rng: random.Random) -> str:
    """A line is missing."""
    lines = text.split("\n")
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines)


def with_line_twice(text: str, rng: random.Random) -> str:
    """A line is there twice."""
    lines = text.split("\n")
    place = rng.randrange(len(lines))
    return "\n".join(lines[: place + 1] + lines[place:])


def with_lines_swapped(text: str, rng: random.Random) -> str:
    """A line and the next are swapped."""
    lines = text.split("\n")
    place = rng.randrange(len(lines) - 1)
    lines[place : place + 2] = lines[place + 1], lines[place]
    return "\n".join(lines)


def with_operator(text: str, rng: random.Random) -> str:
    """An operator is another."""
    places = list(re.finditer(r"(?<= )[-+*/<>=!&|]{1,2}(?= )", text))
    if not places:
        return text
    place = rng.choice(places)
    return text[: place.start()] + rng.choice(OPERATORS) + text[place.end() :]


def with_word(text: str, rng: random.Random) -> str:
    """A word is another, in one place."""
    words = list(re.finditer(r"\b\w+\b", text))
    place, other = rng.choice(words), rng.choice(words)
    return text[: place.start()] + other[0] + text[place.end() :]


def cut(text: str, rng: random.Random) -> str:
    """The text stops in the middle."""
    return text[: rng.randrange(1, len(text))]


def without_character(text: str, rng: random.Random) -> str:
    """A bracket, quote or sign is missing."""
    places = [m.start() for m in re.finditer(r"[^\w\s]", text)]
    place = rng.choice(places)
    return text[:place] + text[place + 1 :]


def with_character(text: str, rng: random.Random) -> str:
    """A bracket, quote or sign too much."""
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("()[]{}:;=+'\"\\#/ \t,.") + text[place:]


def shuffled(text: str, rng: random.Random) -> str:
    """All words, in another order."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def spaced(text: str, rng: random.Random) -> str:
    """White space around everything that is no word."""
    return re.sub(r"([^\w\s])", r" \1 ", text)


def with_tabs(text: str, rng: random.Random) -> str:
    """Indented by tabs."""
    return text.replace("    ", "\t")


def several(text: str, rng: random.Random) -> str:
    """Three of the others, one after another."""
    for mutation in rng.choices(SMALL, k=3):
        text = mutation(text, rng) or text
    return text


SMALL: tuple[Mutation, ...] = (
    renamed,
    with_new_names,
    without_line,
    with_line_twice,
    with_lines_swapped,
    with_operator,
    with_word,
    without_character,
    with_character,
)
MUTATIONS: tuple[Mutation, ...] = (*SMALL * 2, cut, cut, cut, *(several,) * 8, spaced, with_tabs)


def functions(language: str) -> list[str]:
    """The samples of a language, one by one."""
    comment = "#" if language == "python" else "//"
    return SAMPLES[language].strip("\n").split(f"\n{comment}\n")


def pairs() -> tuple[list[str], list[dict[str, Any]]]:
    """All references, and the pairs without their numbers."""
    rng = random.Random(SEED)
    references: list[str] = []
    found: list[dict[str, Any]] = []
    for language in SAMPLES:
        samples = functions(language)
        for sample in samples:
            others = [other for other in samples if other is not sample]
            predictions = [(m.__name__, m(sample, rng)) for m in MUTATIONS]
            predictions += [
                ("same", sample),
                ("shuffled", shuffled(sample, rng)),
                ("empty", ""),
                ("prose", PROSE),
                ("other", others[0]),
                ("with another", f"{sample}\n{others[-1]}"),
                ("twice", f"{sample}\n{sample}"),
            ]
            # A reference may be a fragment too, and have errors or no data flow.
            for reference in (sample, cut(sample, rng), rng.choice(sample.split("\n"))):
                chosen = predictions if reference is sample else rng.sample(predictions, 4)
                found += [
                    {
                        "language": language,
                        "mutation": mutation,
                        "reference": len(references),
                        "prediction": prediction,
                    }
                    for mutation, prediction in chosen
                ]
                references.append(reference)
    return references, found


class FilledSet(dict[Any, None]):
    """A set that keeps the order in which it was filled."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        """As a set's."""
        self[item] = None


def scores(references: list[str], predictions: list[str], language: str, **kwargs: Any) -> Any:
    """The package's five numbers."""
    from codebleu import calc_codebleu

    found = calc_codebleu([[text] for text in references], predictions, language, **kwargs)
    return [round(found[part], DECIMALS) for part in (*PARTS, "dataflow_match_score")]


def all_scores() -> list[list[float]]:
    """The package's numbers of every pair."""
    references, found = pairs()
    return [
        scores([references[pair["reference"]]], [pair["prediction"]], pair["language"])
        for pair in found
    ]


def unchanged_scores(hash_seed: int) -> list[list[float]]:
    """The same from the package as it is, in a process with another order of strings in sets."""
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        check=True,
    )
    found: list[list[float]] = json.loads(done.stdout)
    return found


def keywords(language: str) -> str:
    """A digest of the words that the package gives more weight."""
    import codebleu

    path = Path(codebleu.__file__).with_name("keywords") / f"{language}.txt"
    words = sorted(set(path.read_text(encoding="utf-8").split()))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def main(target: str) -> None:
    """Write codebleu.json.gz into `target`."""
    from codebleu import dataflow_match
    from codebleu.parser import DFG

    unchanged = [unchanged_scores(seed) for seed in HASH_SEEDS]
    DFG.set = dataflow_match.set = FilledSet
    references, found = pairs()
    languages = {pair["reference"]: pair["language"] for pair in found}
    flows = [
        # Of what is like itself, a match of 0 can only mean that there is nothing to match.
        scores([text], [text], languages[number])[-1] > 0
        for number, text in enumerate(references)
    ]
    for number, (pair, five) in enumerate(zip(found, all_scores(), strict=True)):
        pair["scores"] = five
        pair["stable"] = all(run[number] == five for run in unchanged)
    corpora = {}
    for language in SAMPLES:
        ours = [pair for pair in found if pair["language"] == language]
        corpora[language] = scores(
            [references[pair["reference"]] for pair in ours],
            [pair["prediction"] for pair in ours],
            language,
            weights=WEIGHTS,
        )
    written = {
        "versions": {
            name: version(name)
            for name in ("codebleu", "tree-sitter", *(f"tree-sitter-{name}" for name in GRAMMARS))
        }
        | {"python": platform.python_version()},
        "weights": WEIGHTS,
        "references": list(zip(references, flows, strict=True)),
        "pairs": [list(pair.values()) for pair in found],
        "corpora": corpora,
        "keywords": {language: keywords(language) for language in SAMPLES},
    }
    text = json.dumps(written, separators=(",", ":"))
    (Path(target) / "codebleu.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the package's own, at every reference without data flow
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        print(json.dumps(all_scores()))
