"""Starting Ollama on this machine, where the user has allowed it (serving.start_ollama)."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

from forge_mcp.errors import Unavailable
from forge_mcp.serving.ollama_api import OllamaApi, is_ollama_installed
from forge_mcp.settings import forge_home, is_loopback

LOG = "ollama.log"
START_SECONDS = 30.0
POLL_SECONDS = 0.1
TAIL_BYTES = 2000


def start_ollama(api: OllamaApi, *, wait: float = START_SECONDS) -> Path:
    """Run 'ollama serve' and wait until it answers; returns its log file in FORGE_HOME/logs.

    The server goes on when this process ends, as one does that a user has started.

    Args:
        api: where it shall listen; an address of this machine.
        wait: seconds.

    Raises:
        Unavailable: another machine's address, Ollama is not installed, or it ends or stays silent.
    """
    place = urlsplit(api.address)
    if not is_loopback(api.address) or place.scheme != "http":
        raise Unavailable(
            f"Ollama does not answer at {api.address}, and cannot be started there from here.",
            cause="it is not an http address of this machine",
            next_step="Start it there, or correct serving.ollama_host.",
        )
    if not is_ollama_installed():
        raise Unavailable(
            "Ollama is not installed on this machine.",
            cause="there is no program 'ollama' here to start",
            next_step="Install it from https://ollama.com/download, or use --target llamacpp, "
            "which needs no server.",
        )
    log = forge_home() / "logs" / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["ollama", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OLLAMA_HOST": place.netloc},
            start_new_session=True,
        )
    until = time.monotonic() + wait
    while time.monotonic() < until:
        ended = process.poll()
        try:
            api.version()
        except Unavailable:
            if ended is not None:
                raise Unavailable(
                    f"'ollama serve' ended by itself with exit code {ended}.",
                    cause=_tail(log),
                    next_step=f"See {log}.",
                ) from None
            time.sleep(POLL_SECONDS)
        else:
            return log
    process.terminate()
    raise Unavailable(
        f"'ollama serve' was started and did not answer at {api.address} within {wait:g} seconds.",
        cause=_tail(log),
        next_step=f"See {log}; start Ollama by hand.",
    )


def _tail(log: Path) -> str:
    """The last lines of a log file."""
    text = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()
    return text or "it wrote nothing"
