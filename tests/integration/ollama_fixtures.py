"""What tests of Ollama share: a server, a real model file, and files that are wrong.

With OLLAMA_HOST set, tests run against that server instead of the one of conformance_ollama.py;
their models' names begin with PREFIX and are deleted again.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conformance_ollama import ConformanceOllama

from forge_mcp.errors import ForgeError
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.serving.ollama import delete_ollama_model

NANO = Path(__file__).parents[2] / "forge_mcp" / "assets" / "forge-nano"
TOKENIZER = NANO / "tokenizer.json"
PREFIX = "forge-test"
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there
REAL = os.environ.get("OLLAMA_HOST", "")

needs_switches = pytest.mark.skipif(
    bool(REAL), reason="a real Ollama has no switches for faults (OLLAMA_HOST is set)"
)


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """forge-nano as a GGUF file."""
    return convert_to_gguf(NANO, tmp_path_factory.mktemp("nano") / "model.gguf", "q8_0")


def with_template(change: Callable[[str], str], folder: Path) -> Path:
    """forge-nano as a GGUF file whose chat template was changed."""
    base = folder / "base"
    shutil.copytree(NANO, base)
    template = base / "chat_template.jinja"
    template.write_text(change(template.read_text()))
    return convert_to_gguf(base, folder / "changed.gguf", "q8_0")


def without_key(gguf: Path, key: str, folder: Path) -> Path:
    """A GGUF file in which one metadata key has another name."""
    data = gguf.read_bytes()
    assert data.count(key.encode()) == 1
    path = folder / "without.gguf"
    path.write_bytes(data.replace(key.encode(), key[:-1].encode() + b"_"))
    return path


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConformanceOllama]:
    """The server of the tests, for those that look into it or switch faults on."""
    with ConformanceOllama(tmp_path_factory.mktemp("ollama")) as server:
        yield server


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> str:
    """The address of the server: a real one's where OLLAMA_HOST is set."""
    if REAL:
        return REAL
    server: ConformanceOllama = request.getfixturevalue("ollama")
    return server.host


@pytest.fixture
def name(host: str) -> Iterator[str]:
    """A model name that is free, and is again afterwards."""
    chosen = f"{PREFIX}-{secrets.token_hex(4)}"
    yield chosen
    with suppress(ForgeError):
        delete_ollama_model(chosen, host=host)
