"""Planted credentials of every kind, ordinary code, and text that was made to break the scanner.

No credential stands in this file: all are put together at run time, from a seeded generator.
"""

from __future__ import annotations

import argparse
import ast
import email.message
import hashlib
import json
import re
import socket
import ssl
import subprocess
import sys
import tarfile
import time
import unittest.mock
import uuid
from collections.abc import Callable
from itertools import pairwise, zip_longest
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from secret_kinds import (
    ALNUM,
    BASE64,
    DIGITS,
    HEX,
    KINDS,
    LOWER,
    NAMES,
    UPPER,
    Kind,
    Maker,
    planted,
)

from forge_mcp.mining.miner import parse_repository
from forge_mcp.mining.secret_rules import (
    ANCHORED,
    ASSIGNED_KINDS,
    RUN,
    RUN_CHARACTERS,
    TOKENS,
    common_pairs,
    entropy,
    is_bare_token,
    is_password,
    is_token,
    looks_random,
    piece_length,
)
from forge_mcp.mining.secrets import (
    Found,
    Secret,
    _merge,
    _plugins,
    _runs,
    find_secrets,
    redact,
    replace_secrets,
)
from forge_mcp.settings import load_settings


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_planted_credentials_are_replaced_whole(kind: Kind) -> None:
    for seed in range(25):
        text, secret, expected = planted(kind, seed)
        (found,) = find_secrets(text)
        assert found == Secret(
            text.index(secret), text.index(secret) + len(secret), secret, kind[0]
        )
        assert redact(text) == (expected, 1)


def test_every_rule_has_a_planted_credential() -> None:
    named = {token.placeholder for token in TOKENS} | {rule.placeholder for rule in ANCHORED}
    assert named | {row[0] for row in ASSIGNED_KINDS} == {kind[0] for kind in KINDS}
    assert len(named) >= 25


# -- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "alphabet", "length", "least"),
    [
        (is_password, ALNUM, 12, 0.96),
        (is_password, ALNUM + "!@#$%^&*-_=+", 16, 0.97),
        (is_password, LOWER + DIGITS + "!@#$%^&*(-_=+)", 50, 0.99),
        (looks_random, HEX, 24, 0.98),
        (looks_random, ALNUM, 16, 0.98),
        (looks_random, LOWER + DIGITS, 20, 0.98),
        (is_token, UPPER + "234567", 20, 0.97),
        (is_token, BASE64, 40, 0.99),
        (is_token, UPPER + LOWER, 32, 0.96),
        (is_bare_token, HEX, 32, 0.99),
        (is_bare_token, ALNUM, 20, 0.98),
    ],
)
def test_random_literals_pass_their_gate(
    gate: Callable[[str], bool], alphabet: str, length: int, least: float
) -> None:
    maker = Maker(7)
    assert sum(gate(maker.of(alphabet, length)) for _ in range(1000)) / 1000 >= least


def test_few_names_of_the_standard_library_pass_the_gates() -> None:
    """The identifiers of these modules, which nobody chose for this test."""
    modules = (argparse, ast, email.message, socket, ssl, subprocess, tarfile, unittest.mock)
    texts = [Path(module.__file__ or "").read_text("utf-8") for module in modules]
    names = {name for text in texts for name in re.findall(r"[A-Za-z_][\w.]{7,}", text)}
    assert len(names) > 3000
    # measured: 0.2% and 0.6%, of which many are like PROTOCOL_TLSv1_2
    assert sum(map(is_token, names)) < 0.005 * len(names)
    assert sum(map(looks_random, names)) < 0.01 * len(names)


def test_measures() -> None:
    assert entropy("") == 0
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2
    assert piece_length("parseURL2") == 3
    assert piece_length("---") == float("inf")
    assert common_pairs("ab") == 1  # too short to tell
    assert common_pairs("internationalisation") > 0.9
    assert common_pairs("xqzvkjwpxqfz") == 0


# -- ordinary text -----------------------------------------------------------------------------

SHA1 = hashlib.sha1(b"abc", usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(b"abc").hexdigest()
ID = str(uuid.uuid5(uuid.NAMESPACE_DNS, "a.org"))


@pytest.mark.parametrize(
    "text",
    [
        f'assert sha1(b"abc").hexdigest() == "{SHA1}"',
        f"self.assertEqual(digest, '{SHA256}')",
        f'{{"sha256": "{SHA256}"}}',
        f'token_hash = "{SHA256}"',
        f'key_sha256 = "{SHA256}"',
        f"publicKeyToken='{SHA1[:16]}'",
        f'namespace = uuid.UUID("{ID}")',
        f'id = "{ID}"',
        f'token = "{ID}"',
        f"git+https://x.org/a/b@{SHA1}",
        "password = getpass()",
        'password = getpass.getpass("Password for the 2nd server: ")',
        'token = os.environ["APP_TOKEN_2"]',
        'secret = os.environ["APP_SECRET_2"]',
        "const key = process.env.API_KEY_V2;",
        "token=auth.tokens[0].access_token_v2",
        'lookup.key("a1b2_c3d4_e5f6_g7h8_x9")',
        "per_token_cast_to_fp8=per_token_cast_to_fp8,",
        'password = "changeme-please"',
        'password = "correct-horse-battery"',
        'password = "hunter2"',
        'token = "keyword.operator.assignment"',
        'TOKEN_NAME = "symbol2label"',
        'password_hasher = "pbkdf2_sha256"',
        'API_KEY = "<your api key 123>"',
        'API_KEY = "<YOUR-API-KEY-V2-HERE>"',
        'api_key = "your-api-key-1a2B3c4D"',
        'api_key = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx1"',
        'API_KEY = "{{ API_KEY_1 }}"',
        'api_key="${API_KEY_1a2B}"',
        'api_key="%(api_key_2)s"',
        'toolskey = "VS%0.f0COMNTOOLS"',
        'password = f"{user}1234567890"',
        'secret_key = "0123456789abcdef0123456789abcdef"',
        'aws_secret_access_key = "' + "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + 'EXAMPLEKEY"',
        'AWS_ACCESS_KEY_ID = "' + "AKIA" + 'IOSFODNN7EXAMPLE"',
        'key="/etc/ssl/private/server2.key"',
        'key_file = "certs/keycert3.secp384r1.pem"',
        'private_key_path = "~/.ssh/id_ed25519_v2x"',
        'token_url = "https://auth.a1b2c3.org/oauth2/v1/token"',
        "url = 'https://example.com:8080/a@b'",
        "url = 'http://user:password@host/'",
        "url = f'http://{user}:{password2}@{host1}/'",
        "{'author': 'J2ean-Luc9'}",
        '"tokenizers": "tokenizers>=0.23.1,<0.24.0",',
        'names = ["X509_passwd_st", "X509_HASH_DIR_CTX_2", "a1_b2_c3"]',
        '(r"(A[BW]|AE|AN|L8|B[MR]|T2)", Name.token)',
        "class: sk-fading-circle-of-something-long",
        "task-force-one-of-many-long-names-2000",
        "hf_model_name_without_a_token",
        "hf_thisisonlyalongwordinlowercaseletters",
        "xoxb-put-your-token-here-please",
        "glpat-your-token-goes-here",
        "akia AKIA_NAME_OF_SOMETHING",
        "Basic authentication, basic understanding of it; Basic YWJjZGVmZ2hpag==",
        "Bearer authentication_with_a_long_name",
        "Authorization: required_for_all_of_them",
        "-----BEGIN CERTIFICATE-----\n" + "MIIEpAIBAAKCAQEA7bq8" * 4,
        'BEGIN, END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"\n',
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKC...\n-----END RSA PRIVATE KEY-----\n",
        "-----END PRIVATE KEY-----",
        '"-----BEGIN PRIVATE KEY-----", "thequickbrownfoxjumpsoverthelazydogs"',
        f'"APACHELICENSE"  # at {SHA1}',
        "/" * 100 + " " + "=" * 100 + "-" * 100 + "_" * 100,
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == (text, 0)


def test_code_that_reads_private_keys_is_no_key() -> None:
    begin, end = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
    code = Path(subprocess.__file__).read_text("utf-8")[:20_000]
    text = f'BEGIN = "{begin}"\n{code}\nEND = "{end}"\n'
    assert find_secrets(text) == []
    # A key that has lost its end does not take the code behind it along.
    lines = "\n".join(Maker(1).key_lines())
    (found,) = find_secrets(f'KEY = """{begin}\n{lines}"""\n{code}\nEND = "{end}"\n')
    assert found.text == f"{begin}\n{lines}"


# -- the whole -----------------------------------------------------------------------------------


def test_more_exact_rules_name_what_several_find() -> None:
    maker = Maker(3)
    token, key_id, secret = (
        "ghp_" + maker.of(ALNUM, 36),
        "AKIA" + maker.of(UPPER, 16),
        maker.of(BASE64, 40),
    )
    assert redact(f'password = "{token}"') == ('password = "REDACTED_GITHUB_TOKEN"', 1)
    assert redact(f'auth_token="{key_id}:{secret}"') == ('auth_token="REDACTED_AWS_KEY"', 1)
    assert redact(f'Session("{key_id}", "{secret}")') == (
        'Session("REDACTED_AWS_KEY", "REDACTED_AWS_SECRET")',
        2,
    )


def test_offsets_are_those_of_the_text_with_other_letters() -> None:
    token = "ghp_" + Maker(4).of(ALNUM, 36)
    text = f"# İstanbul ß 漢字 \U0001f511 \ud800 {token} é\n"
    (found,) = find_secrets(text)
    assert text[found.start : found.end] == found.text == token
    password = Maker(5).of(ALNUM, 12) + "ä9"
    assert redact(f"password = '{password}'") == ("password = 'REDACTED_PASSWORD'", 1)


def test_credentials_without_a_border_hide_none_of_each_other() -> None:
    maker = Maker(5)
    bot_token = f"{maker.of(DIGITS, 10)}:AA{maker.of(ALNUM, 33)}"
    redacted, count = redact("ghp_" + maker.of(ALNUM, 36) + bot_token + bot_token)
    assert re.fullmatch(r"(REDACTED_[A-Z_]+)+", redacted)
    assert count == 2


def test_replacing_takes_every_occurrence_and_the_longest_first() -> None:
    long, short = "ghp_" + Maker(1).of(ALNUM, 36), Maker(2).of(ALNUM, 20)
    secrets = [Secret(0, 1, short, "SHORT"), Secret(0, 1, short + long, "LONG")]
    assert replace_secrets(f"{short} {short}{long} {short}", secrets) == "SHORT LONG SHORT"
    assert replace_secrets(short, []) == short


def test_a_repository_keeps_no_secret(tmp_path: Path) -> None:
    maker = Maker(6)
    key, pem = "AKIA" + maker.of(UPPER, 16), maker.pem()
    indented = "\n".join(f"    {line}" for line in pem.splitlines())
    (tmp_path / "a.py").write_text(
        f'"""Uses {key}."""\n\nKEY = "{key}"\n\n\n'
        f'def connect(key="{key}"):\n    """Connect with {key}."""\n    return open(key)\n\n\n'
        f'def sign():\n    return load("""{pem}""", 1)\n\n\n'
        # cleaning takes the indentation from a docstring, so that its key looks otherwise there
        f'def verify(x):\n    """Verify with this.\n\n{indented}\n    """\n    return [x, x + 1]\n'
    )
    settings = load_settings(None, {"mining": {"min_tokens": 0, "workers": 1}})
    mined = parse_repository(tmp_path, settings)
    blocks = {block.id: block for block in [*mined.blocks, *mined.rejected]}
    assert mined.secrets_redacted == 6
    connect = blocks["a.py::connect"]
    assert connect.docstring == "Connect with REDACTED_AWS_KEY."
    assert connect.metadata["parameters"][0]["default"] == '"REDACTED_AWS_KEY"'
    assert connect.metadata["secrets_redacted"] > 0
    assert connect.content_hash == hashlib.sha256(connect.source_code.encode()).hexdigest()
    reasons = {block.id: block.reasons for block in mined.rejected}
    assert reasons == {"a.py::sign": ["secret"], "a.py::verify": ["secret"]}
    everything = json.dumps([block.model_dump() for block in blocks.values()])
    assert not [line for line in [key, *pem.splitlines()[1:-1]] if line in everything]


# -- the second opinion --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placeholder", "secret", "place"),
    [
        ("REDACTED_TWILIO_API_KEY", "AC" + Maker(1).of(HEX, 32), "dial('@')\n"),
        ("REDACTED_ARTIFACTORY_CREDENTIALS", "AKC" + Maker(2).of(ALNUM, 30), 'use = "@"\n'),
        (
            "REDACTED_SOFTLAYER_CREDENTIALS",
            Maker(3).of(LOWER + DIGITS, 64),
            "'https://api.softlayer.com/soap/v3/@'\n",
        ),
    ],
)
def test_detect_secrets_finds_what_the_rules_do_not_know(
    placeholder: str, secret: str, place: str
) -> None:
    before, _, behind = place.partition("@")
    text = f"x = 1\n{before}{secret}{behind}y = 2\n"
    assert redact(text) == (text.replace(secret, placeholder), 1)
    assert redact(text.rstrip("\n"))[1] == 1


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_detect_secrets_finds_nothing_that_is_left(kind: Kind) -> None:
    text = redact(planted(kind, 99)[0])[0]
    assert [found for plugin in _plugins() for found in plugin.analyze_string(text)] == []


def test_detect_secrets_is_imported_for_random_text_only(tmp_path: Path) -> None:
    code = (
        "import sys; from forge_mcp.mining.secrets import redact\n"
        "for path in sys.argv[1:]: redact(open(path, encoding='utf-8').read())\n"
        "print('detect_secrets' in sys.modules)"
    )
    random_text = tmp_path / "random.py"
    random_text.write_text(f"x = '{Maker(1).of(HEX, 40)}'\n")
    for path, expected in ((argparse.__file__, "False"), (str(random_text), "True")):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
        assert done.stdout.decode().strip() == expected


def test_detect_secrets_sees_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Plugin:
        secret_type = "Any"

        def analyze_string(self, string: str) -> list[str]:
            seen.append(string)
            return []

    monkeypatch.setattr("forge_mcp.mining.secrets._plugins", lambda: [Plugin()])
    short, long = Maker(1).of(ALNUM, 300), Maker(1).of(ALNUM, 301)
    find_secrets(f"x = '{short}'\ny = '{long}'\n")
    assert seen == [f"x = '{short}'"]


def test_nobody_is_asked_whether_a_secret_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for kind in KINDS:
        assert redact(planted(kind, 5)[0])[1] == 1


# -- properties ----------------------------------------------------------------------------------

FRAGMENTS = (
    *("key", "token", "password", "secret", "auth", "=", ":", " ", "'", '"', "\\", "(", ",", "["),
    *("\n", "\\n", "é", "eyJ", ".", "-", "_", "sk-", "AKIA", "://", "@", "Basic ", "Bearer ", "M"),
    *("-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----", "Authorization: "),
    *("PuTTY-User-Key-" + "File-2:", "Private-MAC: ", "hooks.slack.com/services/", "/webhooks/"),
    *("Q~", "pul-", "abc123XYZ", "SG.", "xoxb-", "0123456789abcdef", "x" * 25, "aB3" * 9, "$", "%"),
    *("AccountKey=", "AC", "cl_pw", "softlayer_key", "ibm_cloud_iam_key", "1234567890:A", "#"),
)
NOISE = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(FRAGMENTS)).map("".join))
PLANTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 24)), max_size=4)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Planted credentials, at times without a border, between noise of the same vocabulary."""
    parts = [draw(NOISE)]
    for kind, seed in draw(PLANTS):
        text, secret, _ = planted(kind, seed)
        parts += [text if draw(st.booleans()) else secret, draw(NOISE)]
    return "".join(parts)


@given(texts())
def test_secrets_are_in_order_and_nothing_is_left(text: str) -> None:
    secrets = find_secrets(text)
    for secret in secrets:
        assert 0 <= secret.start < secret.end <= len(text)
        assert text[secret.start : secret.end] == secret.text
    for one, other in pairwise(secrets):
        assert one.end <= other.start
    redacted, count = redact(text)
    assert count >= len(secrets)
    assert not [secret for secret in secrets if secret.text in redacted]
    assert redact(redacted) == (redacted, 0)


@given(PLANTS, st.lists(st.text(max_size=30), min_size=5, max_size=5))
def test_one_pass_finds_all_of_a_text(plants: list[tuple[Kind, int]], noise: list[str]) -> None:
    """What the miner relies on: it looks once at a file and replaces in each of its blocks."""
    texts = [planted(kind, seed)[0] for kind, seed in plants]
    text = "\n".join(part for pair in zip_longest(noise, texts, fillvalue="") for part in pair)
    secrets = find_secrets(text)
    assert len(secrets) >= len(set(texts))
    assert redact(text) == (replace_secrets(text, secrets), len(secrets))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9))))
def test_overlapping_findings_are_joined(spans: list[tuple[int, int]]) -> None:
    found = [Found(at, at + length, f"{rank}") for rank, (at, length) in enumerate(spans)]
    merged = _merge(found)
    for one, other in pairwise(merged):
        assert one.end <= other.start
    covered = {place for f in found for place in range(f.start, f.end)}
    assert {place for f in merged for place in range(f.start, f.end)} == covered
    for joined in merged:
        inside = [f.placeholder for f in found if joined.start <= f.start < joined.end]
        assert joined.placeholder == min(inside, key=int)


@given(st.text(st.sampled_from("aA1_-+/ .é\n"), max_size=120))
def test_no_run_is_overlooked(text: str) -> None:
    plain = text.replace("é", "?")
    pattern = f"[{re.escape(RUN_CHARACTERS)}]{{{RUN},}}"
    assert list(_runs(plain)) == [match.span() for match in re.finditer(pattern, plain)]


@settings(max_examples=20)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join), st.booleans())
@example("sk-", False)  # a head at every third character, in one run
@example("eyJ" + "a" * 20 + ".", False)
def test_hostile_text_costs_linear_time(unit: str, shuffled: bool) -> None:
    """100 kB of one repeated unit, or of all fragments in a random order."""
    words = Maker(len(unit)).random.choices([unit, *FRAGMENTS], k=30_000)
    text = ("".join(words) if shuffled else unit * (100_000 // len(unit) + 1))[:100_000]
    started = time.process_time()
    find_secrets(text)
    assert time.process_time() - started < 5  # measured: 0.4 at most
