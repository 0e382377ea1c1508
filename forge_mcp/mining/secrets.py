"""Credentials in source text, found by rules in the manner of gitleaks, and taken out.

Rules for tokens with a known shape fire on the shape alone; where the shape could be an ordinary
identifier, and for literals that are assigned to something called password, secret, token or
key, the literal must also look random: Shannon entropy of its characters, and mixed classes.
Each secret becomes a placeholder that says what stood there, e.g. `REDACTED_AWS_KEY`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

PRIVATE_KEY = "REDACTED_PRIVATE_KEY"


def entropy(text: str) -> float:
    """Shannon entropy in bits per character; 0 for the empty text."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def looks_random(text: str) -> bool:
    """Whether a literal is rather a credential than a word, a path or a template."""
    if re.search(r"[<>{}()\s]|\$\w|%\(|%s|\.\.\.|\*\*\*|xxx", text, re.IGNORECASE):
        return False
    if re.search(r"example|changeme|placeholder|your[_-]|redacted|dummy", text, re.IGNORECASE):
        return False
    mixed = re.search(r"[A-Za-z]", text) and re.search(r"\d.*\d|\d.*[A-Z\W]|[A-Z\W].*\d", text)
    # A short text cannot reach 3 bits: ten different characters have 3.3.
    return bool(mixed) and entropy(text) >= min(3.0, 0.85 * math.log2(len(text)))


def _mixed(text: str) -> bool:
    """A token behind a prefix that ordinary names share ('sk-…') has digits and capitals."""
    return bool(re.search(r"\d", text) and re.search(r"[A-Z]", text)) and entropy(text) >= 3.5


@dataclass(frozen=True)
class Rule:
    """One kind of credential.

    Attributes:
        placeholder: what it is replaced by.
        keywords: one of them (lower case) must stand in the text; a cheap first look.
        pattern: the group `secret`, or else the whole match, is the secret.
        gate: what the secret must also pass.
    """

    placeholder: str
    keywords: tuple[str, ...]
    pattern: re.Pattern[str]
    gate: Callable[[str], bool] = lambda secret: True


RULES: tuple[Rule, ...] = (
    Rule(
        PRIVATE_KEY,
        ("private key",),
        re.compile(
            r"-----BEGIN[ A-Z0-9_-]{0,100}PRIVATE KEY(?: BLOCK)?-----"
            r"[\s\S]{32,}?-----END[ A-Z0-9_-]{0,100}PRIVATE KEY(?: BLOCK)?-----"
        ),
    ),
    Rule(
        "REDACTED_AWS_KEY",
        ("akia", "asia", "abia", "acca", "a3t"),
        re.compile(r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    ),
    Rule(
        "REDACTED_AWS_SECRET",
        ("aws",),
        re.compile(
            r"(?i)aws\w{0,20}(?:secret|key)\w{0,20}['\"]?\s*(?:=>|:=|=|:)\s*['\"]"
            r"(?P<secret>[A-Za-z0-9/+=]{40})['\"]"
        ),
        lambda secret: entropy(secret) >= 3.5,
    ),
    Rule(
        "REDACTED_GITHUB_TOKEN",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    ),
    Rule(
        "REDACTED_GITLAB_TOKEN",
        ("glpat-",),
        re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
        looks_random,
    ),
    Rule("REDACTED_GOOGLE_KEY", ("aiza",), re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    Rule(
        "REDACTED_ANTHROPIC_KEY",
        ("sk-ant-",),
        re.compile(r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    ),
    Rule(
        "REDACTED_OPENAI_KEY",
        ("sk-",),
        re.compile(r"\bsk-(?!ant-)[A-Za-z0-9_-]{20,}"),
        _mixed,
    ),
    Rule("REDACTED_HUGGINGFACE_TOKEN", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}"), _mixed),
    Rule(
        "REDACTED_STRIPE_KEY",
        ("sk_live_", "rk_live_", "sk_test_", "rk_test_"),
        re.compile(r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ),
    Rule(
        "REDACTED_SLACK_TOKEN",
        ("xoxb-", "xoxa-", "xoxp-", "xoxr-", "xoxs-", "xapp-", "hooks.slack.com"),
        re.compile(
            r"\b(?:xox[baprs]|xapp)-[A-Za-z0-9-]{10,}"
            r"|hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"
        ),
    ),
    Rule(
        "REDACTED_JWT",
        ("eyj",),
        re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    ),
    Rule(
        "REDACTED_PASSWORD_IN_URL",
        ("://",),
        re.compile(r"[a-zA-Z][\w+.-]*://[^\s/:@'\"]+:(?P<secret>[^\s/:@'\"]{6,})@"),
        looks_random,
    ),
    Rule(
        "REDACTED_SECRET",
        ("passw", "pwd", "secret", "token", "api_key", "apikey", "api-key", "credential", "auth"),
        re.compile(
            r"(?i)(?:passw(?:or)?d|pwd|secret|token|api[_-]?key|credential|auth(?!or))[\w-]{0,30}"
            r"['\"\]]{0,2}\s*(?::\s*[\w.\[\]| ]{1,40})?(?:=>|:=|==|=|:)\s*[rbu]?"
            r"(?P<quote>['\"`])(?P<secret>[^\s'\"`\\]{8,200})(?P=quote)"
        ),
        looks_random,
    ),
)


@dataclass(frozen=True, order=True)
class Secret:
    """A credential in a text: [start, end) in characters, its text, and what replaces it."""

    start: int
    end: int
    text: str
    placeholder: str


def find_secrets(text: str) -> list[Secret]:
    """All credentials in a text, in order and without overlap; earlier rules win."""
    lowered = text.lower()
    found: list[Secret] = []
    for rule in RULES:
        if not any(keyword in lowered for keyword in rule.keywords):
            continue
        for match in rule.pattern.finditer(text):
            group = "secret" if "secret" in rule.pattern.groupindex else 0
            secret = match[group]
            start, end = match.span(group)
            if not rule.gate(secret) or any(f.start < end and start < f.end for f in found):
                continue
            found.append(Secret(start, end, secret, rule.placeholder))
    return sorted(found)


def redact(text: str) -> tuple[str, int]:
    """The text with every credential replaced by its typed placeholder, and their number."""
    secrets = find_secrets(text)
    return replace_secrets(text, secrets), len(secrets)


def replace_secrets(text: str, secrets: list[Secret]) -> str:
    """Every occurrence of the given credentials in any text replaced, the longest first."""
    for secret in sorted(secrets, key=lambda s: len(s.text), reverse=True):
        text = text.replace(secret.text, secret.placeholder)
    return text
