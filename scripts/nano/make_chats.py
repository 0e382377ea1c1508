"""Write the chats of forge-nano's second phase: AI Forge's own questions on permissive code.

    python scripts/nano/make_chats.py --output chats.jsonl --tokenizer tokenizer.json \
        --max-examples 12000 --seed 0 FOLDER…

Each folder is one corpus: its usable files (the rules of data.py: no tests, no vendored code, no
held-out module, nothing that demos, tests or benchmarks look at) are mined and turned into RAFT
examples, and the chats of all splits are written as rows ``{"messages": […]}``. Rows that are
longer than ``--max-tokens`` are left out, and of the others those are thinned that teach little a
token: chats longer than SHORT tokens, and abstentions. One summary line a corpus goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import data
from tokenizers import Tokenizer

from forge_mcp.mining.miner import parse_repository
from forge_mcp.raft import build_dataset
from forge_mcp.raft.splits import shuffled
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER
from forge_mcp.schemas.raft_examples import SPLITS
from forge_mcp.settings import load_settings

TURNS = 12  # tokens that the chat template adds to the three turns
SHORT = 500  # tokens; a longer chat is kept with the probability (SHORT / its tokens) squared


def copy_usable(folder: Path, target: Path, max_bytes: int, seed: int) -> int:
    """Copy files that data.py would train on, in an order drawn from the seed, up to a size.

    Returns:
        their number.
    """
    standard_library = folder.resolve() == Path(sysconfig.get_paths()["stdlib"]).resolve()
    copied, room = 0, max_bytes
    for path in shuffled(sorted(folder.rglob("*.py")), seed, "files"):
        parts = path.relative_to(folder).parts
        if not data.wanted((folder.name, *parts)) or data.read(path) is None:
            continue
        skipped = data.STDLIB_SKIP | data.HELD_OUT if standard_library else frozenset()
        if {part.removesuffix(".py") for part in parts} & skipped:
            continue
        room -= path.stat().st_size
        if room < 0:
            break
        place = target.joinpath(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        copied += 1
    return copied


def chats_of(folder: Path, tokenizer: Tokenizer, args: argparse.Namespace) -> list[str]:
    """The rows of one corpus, as JSON lines."""
    settings = load_settings()
    raft = settings.raft.model_copy(
        update={"seed": args.seed, "preferences": False, "max_document_chars": args.document_chars}
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        files = copy_usable(folder, root / folder.name, args.max_bytes, args.seed)
        mined = parse_repository(root, settings)
    dataset = build_dataset(mined.blocks, raft, others=mined.rejected)
    rows: list[str] = []
    long = 0
    rng = random.Random(f"{args.seed}/{folder.name}/thin")
    chats = [row for split in SPLITS for row in dataset.rows(split)]
    for row in shuffled(chats, args.seed, folder.name):
        tokens = sum(len(tokenizer.encode(m.content).ids) for m in row.messages) + TURNS
        abstains = row.messages[-1].content.endswith(ABSTAIN_ANSWER)
        keep = min(1.0, (SHORT / tokens) ** 2) * (args.keep_abstaining if abstains else 1.0)
        if tokens > args.max_tokens:
            long += 1
        elif rng.random() < keep and len(rows) < args.max_examples:
            rows.append(json.dumps(row.model_dump(), ensure_ascii=False))
    print(
        f"{folder.name}: {files} files, {len(mined.blocks)} blocks, {len(chats)} examples, "
        f"{long} too long, {len(rows)} written; left out: {dataset.skipped}",
        file=sys.stderr,
        flush=True,
    )
    return rows


def main() -> None:
    """Read the command line, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folders", type=Path, nargs="+", help="each is one corpus")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--max-examples", type=int, default=12_000, help="per corpus")
    parser.add_argument("--max-bytes", type=int, default=1_500_000, help="code read per corpus")
    parser.add_argument("--max-tokens", type=int, default=1400, help="per chat")
    parser.add_argument(
        "--keep-abstaining", type=float, default=0.4, help="share of abstaining chats kept"
    )
    parser.add_argument("--document-chars", type=int, default=1200, help="raft.max_document_chars")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    rows: list[str] = []
    partial = args.output.with_suffix(".partial")
    for folder in args.folders:  # written again after each corpus: usable before the last one
        rows += chats_of(folder, tokenizer, args)
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in shuffled(rows, args.seed))
        partial.replace(args.output)
    print(f"{len(rows)} chats, {args.output.stat().st_size / 1e6:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
