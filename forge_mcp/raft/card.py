"""The dataset card: README.md with a header as dataset hubs read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import DIFFICULTIES, SPLITS, PreferencePair, RaftExample

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_HUB_NAMES = {"train": "train", "valid": "validation", "test": "test"}


def dataset_card(
    dataset_id: str,
    examples: Sequence[RaftExample],
    documents: Sequence[CodeBlock],
    preferences: Sequence[PreferencePair],
    *,
    project: str,
    settings: Mapping[str, Any],
    files: Sequence[str],
    revision: str | None = None,
) -> str:
    """What a dataset is, how it was made, what is in it, whose code it shows, and its limits.

    Args:
        dataset_id: its id.
        examples: all of them.
        documents: the blocks that they show or ask about.
        preferences: the preference pairs.
        project: name of the repository.
        settings: the raft section that it was made with.
        files: names of the files with examples.
        revision: of the repository, where it has one.
    """
    licenses = Counter(block.license or "unknown" for block in documents)
    languages = Counter(block.language for block in documents)
    header = _header(project, examples, licenses, languages, files)
    rows = len(examples)
    absent = sum(example.oracle_absent for example in examples)
    closed = sum(example.closed_book for example in examples)
    authors = Counter(example.author for example in examples)
    written = ", ".join(f"{_text(name)} ({n})" for name, n in sorted(authors.items()))
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {_text(project)}: questions on its code",
        f"`{dataset_id}`: {rows} question-and-answer rows and {len(preferences)} preference pairs "
        f"about the repository {_text(project)}"
        + (f" at revision `{_text(revision)}`" if revision else "")
        + ", in the form of RAFT (arXiv 2403.10131): documents that hold the answer stand beside "
        "some that do not, and the answer cites before it concludes.",
        "## How it was made",
        "AI Forge mined the repository into whole definitions, derived typed facts from them, "
        "derived every fact a second time by other means, and wrote questions, reasoning and "
        "answers around the facts that both ways agree on. Every quote is a byte substring of its "
        "document. Files were assigned to splits first. The same repository and settings give the "
        f"same bytes (seed {settings.get('seed')}). Written by: {written}.",
        f"{absent} rows ({_share(absent, rows)}) show no document that answers "
        f"(mode {settings.get('oracle_absent_mode')}); {closed} ({_share(closed, rows)}) show none "
        "at all and ask about blocks of the training split. Closed-book rows of valid and test are "
        "phrased in words that no training row uses.",
        "## What is in it",
        _table("split", Counter(e.split for e in examples), SPLITS),
        _table("difficulty", Counter(e.difficulty for e in examples), DIFFICULTIES),
        _table("kind of fact", Counter(e.fact.kind for e in examples)),
        _table("language of the documents", languages),
        "Files: " + ", ".join(f"`{name}`" for name in files) + "; `examples.jsonl` and "
        "`documents.jsonl` hold the same rows with their facts and places, `preferences.jsonl` "
        "a true and a false answer each.",
        "## Licences",
        "The documents and the code in answers are the repository's own and stay under its "
        "licences; rows may be passed on only as those allow.",
        _table("licence of the documents", licenses),
        "## Known limits",
        "- Questions are made from templates; wording is regular, and no question asks why code "
        "is as it is unless a teacher wrote it.\n"
        "- Facts are what the text of the code says: dynamic calls, reflection and code that is "
        "generated at run time are not seen.\n"
        "- Documentation is quoted as it stands; where it is wrong, so is the answer.\n"
        "- Places (file and lines) are those of the revision that was mined.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(
    project: str,
    examples: Sequence[RaftExample],
    licenses: Mapping[str, int],
    languages: Mapping[str, int],
    files: Sequence[str],
) -> dict[str, Any]:
    """The fields that hubs read."""
    ids = [name.lower() if name != "unknown" else "unknown" for name in sorted(licenses)]
    size = next((name for below, name in SIZES if len(examples) < below), "n>1M")
    data_files = [
        {"split": _HUB_NAMES[split], "path": f"{split}.jsonl"}
        for split in SPLITS
        if any(example.split == split for example in examples)
    ]
    return {
        "license": ids[0] if len(ids) == 1 else ids,
        "language": ["en"],
        "pretty_name": f"{project}: questions on its code",
        "size_categories": [size],
        "task_categories": ["question-answering", "text-generation"],
        "tags": ["code", "raft", *sorted(languages)],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def _table(what: str, counts: Mapping[str, int], order: Sequence[str] | None = None) -> str:
    names = order or sorted(counts, key=lambda name: (-counts[name], name))
    rows = [f"| {_text(name)} | {counts.get(name, 0)} |" for name in names]
    return "\n".join([f"| {what} | count |", "|---|---:|", *rows])


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def _text(name: str) -> str:
    """A name of the repository, harmless in Markdown."""
    return " ".join(name.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").split())
