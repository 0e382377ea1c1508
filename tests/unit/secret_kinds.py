"""Credentials of every kind, made at run time from a seed, and where they stand in code."""

from __future__ import annotations

import base64
import hmac
import json
import random
import uuid
from collections.abc import Callable

from forge_mcp.mining.secrets import PRIVATE_KEY

DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
HEX = DIGITS + "abcdef"
ALNUM = UPPER + LOWER + DIGITS
URL_SAFE = ALNUM + "-_"
BASE64 = ALNUM + "+/"


class Maker:
    """Random tokens, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def of(self, alphabet: str, length: int) -> str:
        return "".join(self.random.choices(alphabet, k=length))

    def jwt(self) -> str:
        def part(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).decode().rstrip("=")

        header = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        payload = part(json.dumps({"sub": self.of(DIGITS, 9), "name": self.of(LOWER, 7)}).encode())
        key = self.random.randbytes(32)
        signature = hmac.digest(key, f"{header}.{payload}".encode(), "sha256")
        return f"{header}.{payload}.{part(signature)}"

    def basic(self) -> str:
        pair = f"{self.of(LOWER, 6)}:{self.of(ALNUM, 12)}"
        return base64.b64encode(pair.encode()).decode()

    def key_lines(self, length: int = 600, width: int = 64) -> list[str]:
        data = base64.b64encode(self.random.randbytes(length)).decode()
        return [data[at : at + width] for at in range(0, len(data), width)]

    def pem(self, kind: str = "RSA PRIVATE KEY", newline: str = "\n") -> str:
        begin, end = f"-----BEGIN {kind}-----", f"-----END {kind}-----"
        return newline.join([begin, *self.key_lines(), end])

    def putty(self) -> str:
        return "\n".join(
            [
                "PuTTY-User-Key-" + "File-3: ssh-ed25519",
                "Encryption: none",
                "Comment: eddsa-key",
                "Public-Lines: 2",
                *self.key_lines(64),
                "Private-Lines: 1",
                *self.key_lines(36),
                "Private-MAC: " + self.of(HEX, 64),
            ]
        )


# (placeholder, how it is made, where it stands; @ is its place)
Kind = tuple[str, Callable[[Maker], str], str]
PYTHON, CALL, DICT = 'value = "@"\n', "client = connect('@', 3)\n", '{"a": 1, "b": "@"}\n'
JAVASCRIPT, TEMPLATE = "const it = '@';\n", "fetch(`/x?y=@`);\n"
COMMENT, SHELL, ESCAPED = "# try it with @ first\n", "export X=@\n", '"one\\n@\\n"\n'
KINDS: list[Kind] = [
    ("REDACTED_AWS_KEY", lambda m: "AKIA" + m.of(UPPER + "234567", 16), PYTHON),
    ("REDACTED_AWS_KEY", lambda m: "ASIA" + m.of(UPPER + "234567", 16), ESCAPED),
    ("REDACTED_AWS_SECRET", lambda m: m.of(BASE64, 40), 'aws_secret_access_key = "@"\n'),
    ("REDACTED_AWS_SECRET", lambda m: m.of(BASE64, 40), "AWS_SECRET_ACCESS_KEY=@\n"),
    ("REDACTED_AWS_SECRET", lambda m: m.of(BASE64, 40), "{ secretAccessKey: '@' }\n"),
    ("REDACTED_GITHUB_TOKEN", lambda m: "ghp_" + m.of(ALNUM, 36), JAVASCRIPT),
    ("REDACTED_GITHUB_TOKEN", lambda m: "ghs_" + m.of(ALNUM, 36), "https://x:@@github.com/a\n"),
    (
        "REDACTED_GITHUB_FINE_GRAINED_TOKEN",
        lambda m: "github_pat_" + m.of(ALNUM, 22) + "_" + m.of(ALNUM, 59),
        CALL,
    ),
    ("REDACTED_GITLAB_TOKEN", lambda m: "glpat-" + m.of(URL_SAFE, 20), SHELL),
    (
        "REDACTED_GITLAB_TOKEN",
        lambda m: "glpat-" + m.of(URL_SAFE, 27) + ".01" + m.of(LOWER + DIGITS, 7),
        PYTHON,
    ),
    ("REDACTED_GOOGLE_API_KEY", lambda m: "AIza" + m.of(URL_SAFE, 35), TEMPLATE),
    ("REDACTED_GOOGLE_CLIENT_SECRET", lambda m: "GOCSPX-" + m.of(URL_SAFE, 28), DICT),
    ("REDACTED_GOOGLE_OAUTH_TOKEN", lambda m: "ya29.a0" + m.of(URL_SAFE, 160), PYTHON),
    ("REDACTED_ANTHROPIC_KEY", lambda m: "sk-ant-api03-" + m.of(URL_SAFE, 93) + "AA", PYTHON),
    (
        "REDACTED_OPENAI_KEY",
        lambda m: "sk-" + m.of(ALNUM, 20) + "T3Blbk" + "FJ" + m.of(ALNUM, 20),
        COMMENT,
    ),
    ("REDACTED_OPENAI_KEY", lambda m: "sk-proj-" + m.of(URL_SAFE, 120), ESCAPED),
    ("REDACTED_OPENAI_KEY", lambda m: "sk-svcacct-" + m.of(URL_SAFE, 120), JAVASCRIPT),
    ("REDACTED_HUGGINGFACE_TOKEN", lambda m: "hf_" + m.of(UPPER + LOWER, 34), CALL),
    ("REDACTED_STRIPE_KEY", lambda m: "sk_live_" + m.of(ALNUM, 24), PYTHON),
    ("REDACTED_STRIPE_KEY", lambda m: "rk_test_" + m.of(ALNUM, 99), JAVASCRIPT),
    ("REDACTED_STRIPE_WEBHOOK_SECRET", lambda m: "whsec_" + m.of(ALNUM, 32), DICT),
    (
        "REDACTED_SLACK_TOKEN",
        lambda m: f"xoxb-{m.of(DIGITS, 12)}-{m.of(DIGITS, 13)}-{m.of(ALNUM, 24)}",
        PYTHON,
    ),
    (
        "REDACTED_SLACK_TOKEN",
        lambda m: f"xapp-1-A{m.of(UPPER + DIGITS, 10)}-{m.of(DIGITS, 13)}-{m.of(HEX, 64)}",
        SHELL,
    ),
    (
        "REDACTED_SLACK_WEBHOOK",
        lambda m: f"T{m.of(UPPER + DIGITS, 10)}/B{m.of(UPPER + DIGITS, 10)}/{m.of(ALNUM, 24)}",
        'url = "https://hooks.slack.com/services/@"\n',
    ),
    (
        "REDACTED_DISCORD_BOT_TOKEN",
        lambda m: ".".join(
            [
                base64.b64encode(b"5" + m.of(DIGITS, 17).encode()).decode().replace("N", "M", 1),
                m.of(URL_SAFE, 6),
                m.of(URL_SAFE, 38),
            ]
        ),
        "bot.run('@')\n",
    ),
    (
        "REDACTED_DISCORD_WEBHOOK",
        lambda m: f"{m.of(DIGITS, 18)}/{m.of(URL_SAFE, 68)}",
        "post('https://discord.com/api/webhooks/@')\n",
    ),
    ("REDACTED_TELEGRAM_BOT_TOKEN", lambda m: f"{m.of(DIGITS, 10)}:AA{m.of(URL_SAFE, 33)}", CALL),
    (
        "REDACTED_TELEGRAM_BOT_TOKEN",
        lambda m: f"{m.of(DIGITS, 9)}:AA{m.of(URL_SAFE, 33)}",
        "`https://api.telegram.org/bot@/getMe`\n",
    ),
    ("REDACTED_TWILIO_KEY", lambda m: "SK" + m.of(HEX, 32), PYTHON),
    ("REDACTED_SENDGRID_KEY", lambda m: f"SG.{m.of(URL_SAFE, 22)}.{m.of(URL_SAFE, 43)}", PYTHON),
    ("REDACTED_MAILGUN_KEY", lambda m: "key-" + m.of(HEX, 32), CALL),
    ("REDACTED_MAILGUN_KEY", lambda m: f"{m.of(HEX, 32)}-{m.of(HEX, 8)}-{m.of(HEX, 8)}", CALL),
    ("REDACTED_MAILCHIMP_KEY", lambda m: m.of(HEX, 32) + "-us14", JAVASCRIPT),
    ("REDACTED_NPM_TOKEN", lambda m: "npm_" + m.of(ALNUM, 36), "//r.org/:_authToken=@\n"),
    ("REDACTED_PYPI_TOKEN", lambda m: "pypi-AgEIcHlwaS5vcmc" + m.of(URL_SAFE, 150), SHELL),
    ("REDACTED_SHOPIFY_TOKEN", lambda m: "shpat_" + m.of(HEX, 32), DICT),
    ("REDACTED_SHOPIFY_TOKEN", lambda m: "shpss_" + m.of(HEX, 32), PYTHON),
    ("REDACTED_DIGITALOCEAN_TOKEN", lambda m: "dop_v1_" + m.of(HEX, 64), PYTHON),
    ("REDACTED_DATABRICKS_TOKEN", lambda m: "dapi" + m.of(HEX, 32) + "-2", PYTHON),
    (
        "REDACTED_AZURE_STORAGE_KEY",
        lambda m: m.of(BASE64, 86) + "==",
        '"AccountName=a;AccountKey=@;EndpointSuffix=core.windows.net"\n',
    ),
    ("REDACTED_AZURE_STORAGE_KEY", lambda m: m.of(BASE64, 86) + "==", 'account_key="@",\n'),
    (
        "REDACTED_AZURE_CLIENT_SECRET",
        lambda m: m.of(ALNUM, 3) + "8Q~" + m.of(ALNUM + "-_~", 33) + "b",
        "credential(tenant, '@')\n",
    ),
    ("REDACTED_SQUARE_TOKEN", lambda m: "sq0csp-" + m.of(URL_SAFE, 43), PYTHON),
    ("REDACTED_SQUARE_TOKEN", lambda m: "EAAA" + m.of(URL_SAFE, 60), PYTHON),
    ("REDACTED_JWT", Maker.jwt, COMMENT),
    ("REDACTED_API_TOKEN", lambda m: f"glsa_{m.of(ALNUM, 32)}_{m.of(HEX, 8)}", PYTHON),
    ("REDACTED_API_TOKEN", lambda m: "pul-" + m.of(HEX, 40), SHELL),
    ("REDACTED_API_TOKEN", lambda m: "gsk_" + m.of(ALNUM, 52), CALL),
    ("REDACTED_PASSWORD_IN_URL", lambda m: m.of(ALNUM, 14), '"postgres://app:@@db:5432/x"\n'),
    ("REDACTED_PASSWORD_IN_URL", lambda m: m.of(ALNUM, 20), "redis://:@@cache/0\n"),
    ("REDACTED_BASIC_AUTH", Maker.basic, "headers = {'Authorization': 'Basic @'}\n"),
    ("REDACTED_BASIC_AUTH", Maker.basic, 'curl -H "authorization: basic @" x\n'),
    ("REDACTED_BEARER_TOKEN", lambda m: m.of(URL_SAFE, 40), '"Authorization": "Bearer @"\n'),
    ("REDACTED_AUTHORIZATION", lambda m: m.of(HEX, 40), "Authorization: Token @\n"),
    (PRIVATE_KEY, lambda m: "AGE-SECRET-KEY-" + "1" + m.of("QPZRY9X8GF2TVDW0S3JN54", 58), PYTHON),
    (PRIVATE_KEY, Maker.pem, 'KEY = """@"""\n'),
    (PRIVATE_KEY, lambda m: m.pem("OPENSSH PRIVATE KEY"), "x = `\n@\n`\n"),
    (PRIVATE_KEY, lambda m: m.pem("PGP PRIVATE KEY BLOCK"), "'''@'''\n"),
    (PRIVATE_KEY, lambda m: m.pem("ENCRYPTED PRIVATE KEY", "\\n"), '{"private_key": "@\\n"}\n'),
    (PRIVATE_KEY, lambda m: m.pem("EC PRIVATE KEY", '\\n"\n    "'), 'key = (\n    "@"\n)\n'),
    (PRIVATE_KEY, lambda m: m.pem("PRIVATE KEY", "\\n' +\n  '"), "const key = '@';\n"),
    (PRIVATE_KEY, lambda m: m.pem("DSA PRIVATE KEY", "\n# "), "# @\nx = 1\n"),
    (PRIVATE_KEY, lambda m: m.pem()[:500], 'cut_off = "@"\n'),
    (PRIVATE_KEY, Maker.putty, 'PPK = """@\n"""\n'),
    ("REDACTED_PASSWORD", lambda m: m.of(ALNUM, 20), 'DB_PASSWORD = "@"\n'),
    ("REDACTED_PASSWORD", lambda m: m.of(ALNUM, 16), "connect(user, password='@')\n"),
    ("REDACTED_PASSWORD", lambda m: m.of(ALNUM, 24), "db.password: @\n"),
    ("REDACTED_PASSWORD", lambda m: "Sommer" + m.of("!$%", 1) + "1987", 'if pwd == "@":\n'),
    ("REDACTED_PASSWORD", lambda m: m.of(ALNUM, 14), 'builder.setPassword("@");\n'),
    ("REDACTED_SECRET", lambda m: m.of(ALNUM, 32), "{clientSecret: '@'}\n"),
    ("REDACTED_SECRET", lambda m: m.of(HEX, 64), "export APP_SECRET=@\n"),
    ("REDACTED_SECRET", lambda m: m.of(ALNUM + "!@#$%^&*-_=+", 50), "SECRET_KEY = '@'\n"),
    ("REDACTED_TOKEN", lambda m: m.of(ALNUM, 32), 'token: str = "@"\n'),
    ("REDACTED_TOKEN", lambda m: m.of(ALNUM, 32), 'const TOKEN: &\'static str = "@";\n'),
    ("REDACTED_TOKEN", lambda m: m.of(ALNUM, 32), 'val token: String? = "@"\n'),
    ("REDACTED_TOKEN", lambda m: m.of(HEX, 40), 'const authToken string = "@"\n'),
    ("REDACTED_TOKEN", lambda m: m.of(LOWER + DIGITS, 32), 'os.environ["BOT_TOKEN"] = "@"\n'),
    ("REDACTED_KEY", lambda m: m.of(ALNUM, 32), 'os.getenv("API_KEY", "@")\n'),
    ("REDACTED_KEY", lambda m: m.of(HEX, 32), '"{\\"api_key\\": \\"@\\"}"\n'),
    ("REDACTED_KEY", lambda m: m.of(ALNUM, 40), "'apiKey' => '@',\n"),
    ("REDACTED_KEY", lambda m: m.of(HEX, 32), 'key = bytes.fromhex("@")\n'),
    ("REDACTED_KEY", lambda m: str(uuid.UUID(int=m.random.getrandbits(128))), "export API_KEY=@\n"),
]
NAMES = [f"{number}-{placeholder[9:].lower()}" for number, (placeholder, *_) in enumerate(KINDS)]


def planted(kind: Kind, seed: int) -> tuple[str, str, str]:
    """(text, secret, text with the placeholder in its place)."""
    placeholder, make, place = kind
    secret = make(Maker(seed))
    before, _, behind = place.partition("@")
    return before + secret + behind, secret, before + placeholder + behind
