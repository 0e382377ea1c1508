"""How well does the floor of `query` tell questions about a repository from others?

    python benchmarks/relevance.py [--cache FOLDER] [--json FILE]

`query` asks no model where only a small share of a question's telling terms stands together in one
retrieved block (forge_mcp/retrieval/relevance.py; FLOORS in forge_mcp/pipeline/retrieving.py).
Asked are three packages, fetched with pip in fixed versions: 30 questions each that a developer
might ask about it, none of which names a definition, the questions about the other two packages,
50 that no repository answers, and four about each definition with a plain name, which is not in
back-ticks ("Which parameters does request take?"). The floor was chosen on httpcore and click.

A refused question of the package itself is a mistake, unless the package has indeed no such thing.
Questions about other packages are hard: much of what they ask exists everywhere (files, errors,
defaults), and then it is the model that has to say that its documents do not tell.

The exit status is 0 whatever the figures are, and 1 where a package cannot be fetched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from oracles.packages import Package, fetch

from forge_mcp.errors import ForgeError
from forge_mcp.mining.miner import parse_repository
from forge_mcp.pipeline.retrieving import FLOORS
from forge_mcp.retrieval import Retriever
from forge_mcp.retrieval.relevance import share_of_terms
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.settings import load_settings

PACKAGES = {
    "httpcore": Package("pip", "httpcore", "1.0.9", "httpcore-*/httpcore"),
    "click": Package("pip", "click", "8.2.1", "click-*/src/click"),
    "httpx": Package("pip", "httpx", "0.28.1", "httpx-*/httpx"),
}
LOOKED_AT = 12  # blocks, as `query` does with its usual four documents


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cache", type=Path, help="where fetched packages are kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, package in PACKAGES.items():
            try:
                folder = fetch(package, given.cache or Path(temporary))
            except ForgeError as error:
                print(error)
                return 1
            found[name] = shares(name, folder)
            report(name, found[name])
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def shares(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """For each kind of question the share of each one's telling terms in the best block."""
    mined = parse_repository(folder, load_settings(None, {"mining": {"workers": 1}}))
    rejected = [CodeBlock(**block.model_dump(exclude={"reasons"})) for block in mined.rejected]
    retriever = Retriever([*mined.blocks, *rejected])
    asked = {
        "its own": OWN[name],
        "of others": [q for other, rows in OWN.items() if other != name for q in rows],
        "by name": by_name(retriever.blocks),
        "of nobody": NOBODYS,
    }
    return {
        kind: {
            q: share_of_terms(q, [block for block, _ in retriever.search(q, LOOKED_AT)])
            for q in questions
        }
        for kind, questions in asked.items()
    }


def by_name(blocks: list[CodeBlock]) -> list[str]:
    """What is asked about functions whose names are plain words, as one would type it."""
    names = {b.name for b in blocks if b.block_type in ("function", "method")}
    plain = sorted(name for name in names if name.isalpha() and name.islower())
    return [question.format(name) for name in plain for question in NAMED]


def report(name: str, found: dict[str, dict[str, float]]) -> None:
    """A line for each kind: how many are refused at the floor, and at some others."""
    print(f"\n{name}: refused where the share is at most")
    for kind, rows in found.items():
        at = {f: sum(share <= f for share in rows.values()) for f in (0.2, FLOORS["bm25"], 0.5)}
        cells = "   ".join(f"{floor}: {count:2}" for floor, count in at.items())
        print(f"  {kind:10} {cells}   of {len(rows)}")
        if kind in ("its own", "by name"):
            for question, share in rows.items():
                if share <= FLOORS["bm25"]:
                    print(f"             refused ({share:.2f}): {question}")


NAMED = (
    "Which parameters does {} take?",
    "Where is {} defined?",
    "What does {} return?",
    "How is {} implemented?",
)
# fmt: off
OWN = {
    "httpcore": [
        "How are idle connections closed?",
        "What happens when the connection pool is full?",
        "Where is the HTTP/2 stream flow control handled?",
        "How do I send a request through a SOCKS5 proxy?",
        "Which exception is raised when a read times out?",
        "How is the keepalive expiry computed?",
        "What does the library do on a ConnectError, does it retry?",
        "How many connections may a pool keep alive at most?",
        "how is tls started on a proxied connection",
        "Which backends are there for async?",
        "Where are request headers normalised?",
        "What is the default port for https?",
        "How does the trace extension work?",
        "how do i use a unix domain socket",
        "Where is ssl context made by default?",
        "Can I mock the network in tests?",
        "What does aclose do?",
        "how are responses streamed",
        "Why would a connection be reported as available?",
        "What is the maximum size of one write?",
        "How is an HTTP/1.1 upgrade handled?",
        "Which events does h11 give us?",
        "Explain the retry delays with exponential backoff",
        "How is the semaphore acquired under trio?",
        "Does it support happy eyeballs?",
        "when is RemoteProtocolError raised",
        "What is the local_address argument for?",
        "How do I add basic auth to a proxy?",
        "Where do we wait for a free connection?",
        "what happens on cancellation while connecting",
    ],
    "click": [
        "How do I make an option required?",
        "Where is the help page formatted?",
        "What does the default map do?",
        "How are environment variables read for options?",
        "How can a command be called from another command?",
        "how does shell completion work for zsh",
        "Which exception is shown when a parameter is missing?",
        "How do I prompt for a password?",
        "How wide is the help text?",
        "Where is the progress bar drawn?",
        "What does the confirmation option do?",
        "how to test a command line application with the runner",
        "Does echo strip ansi colors?",
        "How are subcommands resolved in a group?",
        "What does the callback of a parameter get?",
        "how is a tuple type converted",
        "Where do we open files lazily?",
        "What is the exit code on abort?",
        "How do I pass an object down to nested contexts?",
        "how are unknown options ignored",
        "What happens with flags that have no value?",
        "Can an option be given several times?",
        "how does the pager choose less or more",
        "What does make_pass_decorator return?",
        "Where is the version printed?",
        "How is a path checked for existence?",
        "How are deprecated commands marked?",
        "Where are the arguments parsed?",
        "what does standalone mode change",
        "How do I edit text in an editor?",
    ],
    "httpx": [
        "How are redirects followed?",
        "What is the default timeout?",
        "How is basic authentication sent?",
        "Where is the encoding of a response guessed?",
        "How do I stream an upload?",
        "Which exception comes when there are too many redirects?",
        "how are cookies kept between requests",
        "Where are multipart forms encoded?",
        "How is a proxy taken from the environment?",
        "what does raise_for_status do",
        "How can I mount a transport for one domain?",
        "How is digest auth computed?",
        "Where is brotli decompressed?",
        "How are query parameters merged into the URL?",
        "Can I call a WSGI app directly?",
        "What are event hooks good for?",
        "How is the elapsed time of a response measured?",
        "how do i turn certificate verification off",
        "Where is netrc read?",
        "What happens to headers when the redirect goes to another host?",
        "How are international domain names encoded?",
        "How many seconds does the pool wait for a connection?",
        "what is printed by the command line client",
        "How is a request body made from JSON?",
        "When is the client closed?",
        "How are lines decoded from a stream?",
        "Is there a mock transport?",
        "Where are status codes defined?",
        "How do I set the user agent?",
        "Why does reading a closed stream fail?",
    ],
}
NOBODYS = [
    "How do I bake a chocolate cake?",
    "What is the capital of Australia?",
    "Who won the world cup in 1998?",
    "Which vitamins are in oranges?",
    "How tall is Mount Everest?",
    "What is the best way to learn the violin?",
    "Tell me a joke about penguins",
    "How many moons does Jupiter have?",
    "Why is the sky blue?",
    "When was Napoleon born?",
    "What is the recipe for tomato soup?",
    "How do plants make oxygen?",
    "Which planet is closest to the sun?",
    "How do I get a stain out of a carpet?",
    "What's the weather in Paris tomorrow?",
    "Who painted the Mona Lisa?",
    "How long do elephants live?",
    "What are the rules of chess?",
    "Is it safe to eat raw eggs?",
    "How do I change a bicycle tyre?",
    "What is the GDP of Brazil?",
    "Who wrote War and Peace?",
    "How deep is the Pacific ocean?",
    "What causes earthquakes?",
    "Translate good morning into Japanese",
    "How much sleep does a toddler need?",
    "Which dog breed is the calmest?",
    "What is photosynthesis?",
    "How do I tie a bow tie?",
    "What time is it in Tokyo?",
    "Where can I buy cheap flights to Rome?",
    "How do vaccines work?",
    "Which instruments are in a string quartet?",
    "What does the liver do?",
    "How far away is the moon?",
    "Can you write a poem about autumn leaves?",
    "Who is the president of France?",
    "How do I lose weight fast?",
    "What is the meaning of life?",
    "Which mushrooms are poisonous?",
    "How does the flux capacitor charge the dilithium crystals?",
    "What does `bake_cake` return?",
    "Which parameters does `WarpDriveController.engage` take?",
    "Where is `calculate_mortgage_rate` defined?",
    "How does the Kubernetes operator reconcile tenants?",
    "Which SQL migration adds the invoices table?",
    "How are shader uniforms uploaded to the GPU?",
    "What does the payment gateway do with refunds?",
    "How is the neural network's learning rate scheduled?",
    "Where do we render the login page in React?",
]
# fmt: on


if __name__ == "__main__":
    raise SystemExit(main())
