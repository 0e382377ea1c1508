"""Where a teacher answers: a language model that the user names.

ollama:MODEL             the Ollama of `serving.ollama_host`
http(s)://HOST/v1#MODEL  whatever speaks the OpenAI protocol
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from forge_mcp.errors import InvalidSettings
from forge_mcp.settings import is_cloud_model, is_loopback


@dataclass(frozen=True)
class Address:
    """Where a teacher answers, and as which model. `base_url` has no slash at its end."""

    protocol: Literal["ollama", "openai"]
    base_url: str
    model: str

    @property
    def author(self) -> str:
        """What stands as the author of its examples; no host is named in a dataset."""
        return f"{'ollama' if self.protocol == 'ollama' else 'api'}:{self.model}"

    @property
    def on_this_machine(self) -> bool:
        """Whether what it is asked stays here."""
        return is_loopback(self.base_url) and not is_cloud_model(self.model)


def parse_address(text: str, ollama_host: str) -> Address:
    """The address of a teacher from what a user wrote.

    Raises:
        InvalidSettings: it is of neither form, or holds a password.
    """
    if text.startswith("ollama:"):
        host = ollama_host if "://" in ollama_host else f"http://{ollama_host}"
        address = Address("ollama", host.rstrip("/"), text.removeprefix("ollama:").strip())
    else:
        url, _, model = text.partition("#")
        address = Address("openai", url.rstrip("/"), model.strip())
    parts = _split(address.base_url)
    if parts is None or parts.scheme not in ("http", "https") or not address.model:
        raise InvalidSettings(
            f"'{text}' is no address of a teacher.",
            cause="it is neither 'ollama:MODEL' nor 'http(s)://HOST/v1#MODEL'",
            next_step="Write e.g. ollama:qwen2.5-coder or http://localhost:1234/v1#qwen2.5-coder.",
        )
    if parts.username or parts.password or parts.query:
        raise InvalidSettings(
            "The address of a teacher may hold no user, password or query.",
            cause="addresses are logged and stored, keys never are",
            next_step="Put the key into the environment variable that teacher.api_key_variable "
            "names.",
        )
    return address


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return None
    return parts if parts.hostname else None


def where_it_goes(address: Address) -> str:
    """What the user should know of where the questions go, in one sentence."""
    place = f"{address.model} at {address.base_url}"
    if address.on_this_machine:
        return f"The teacher is {place}: nothing leaves this machine."
    sealed = "" if address.base_url.startswith("https") else ", unencrypted"
    return f"The teacher is {place}: code of the repository is sent there{sealed}, as you asked."
