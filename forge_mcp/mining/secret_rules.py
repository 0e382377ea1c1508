"""What credentials look like: the tables that `mining.secrets` applies to a text.

TOKENS        a prefix that an issuer chose, then random characters
ANCHORED      shapes around a literal that is rare in code: headers, URLs, connection strings
ASSIGNMENTS   a literal that is given to a name like password, secret, token or key
looks_random, is_token   the gates for literals whose place or shape alone says too little

Time stays linear on hostile text: repetitions are bounded, or possessive and not followed by what
they match.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

PRIVATE_KEY = "REDACTED_PRIVATE_KEY"

# -- gates -------------------------------------------------------------------------------------

PLACEHOLDER = re.compile(
    r"redacted|example|placeholder|change[_-]?me|your[_-]|dummy|fake|sample|xxxx|\*\*\*|\.\.\."
    r"|(.)\1{7}|01234567|12345678|abcdefgh",
    re.IGNORECASE,
)
# What a program fills in, or code; a random text holds such a thing now and then.
TEMPLATE = re.compile(
    r"\$?\{[^{}]*\}|<[^<>]*>|\[[^\[\]]*\]|\w\(\w*\)|\$\([^()]*\)|\A\$\w+\Z|&#?\w+;|#\w+#"
    r"|(?<![A-Za-z0-9])%[sdr](?![A-Za-z0-9])|%\(\w+\)[sdr]?|%[0-9]*\.[0-9]*f"
)
# An address, the name of a file, or alternatives.
NO_SECRET = re.compile(
    r"://|\|[^|]+\|[^|]+\||\A(?:~|\.{1,2})/"
    r"|\.(?:pem|key|crt|json|ya?ml|toml|ini|cfg|txt|md|html?|xml|csv|py|[jt]sx?|go|java|css|png)\Z"
)
# One word, one number or one acronym of an identifier: 'parseURL2' has three.
PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
# Perhaps behind a prefix; long runs of digits or letters are common in it.
HEX = re.compile(r"(?:[A-Za-z]{1,12}+[-_]){0,2}+(?:[0-9a-f]{16,}|[0-9A-F]{16,})")
UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# For each first letter the second ones of the 250 pairs that make up 94% of the letter pairs in
# the identifiers of CPython's standard library, Django and two JavaScript packages.
SECONDS = (
    "a:bcdgiklmnprstuvxy b:aeilorsuy c:acehiklorstu d:adeilorsu e:abcdefgilmnopqrstvwxy "
    "f:aefiloru g:aehinrsu h:aeiot i:abcdefglmnoprstvxz j:e k:eis l:adeilostuy m:abeimopsu "
    "n:acdefgiklnostuv o:abcdfgiklmnoprstuvw p:aeiloprstuy q:u r:acdegiklmnoprstuvy "
    "s:acehilopstuy t:acehiloprstuy u:abcefilmnprst v:aei w:aeinor x:ipt y:mnpst z:e"
)
COMMON_PAIRS = frozenset(group[0] + second for group in SECONDS.split() for second in group[2:])
FEWEST_PAIRS = 8


def entropy(text: str) -> float:
    """Shannon entropy in bits per character; 0 for the empty text."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def piece_length(text: str) -> float:
    """Mean length of the words and numbers that a literal consists of, in characters.

    Identifiers have 4 to 10; of 20 random characters, base62 has 1.8 and hex 2.0 (medians).
    """
    pieces = PIECE.findall(text)
    return sum(map(len, pieces)) / len(pieces) if pieces else math.inf


def common_pairs(text: str) -> float:
    """Share of the letter pairs that are common in identifiers; 1 where there are too few pairs.

    19 of 20 identifiers have 0.8 and more, 19 of 20 random literals of 20 letters 0.6 and less.
    """
    pairs = [a + b for a, b in pairwise(text.lower()) if a.isalpha() and b.isalpha()]
    if len(pairs) < FEWEST_PAIRS:
        return 1.0
    return sum(pair in COMMON_PAIRS for pair in pairs) / len(pairs)


def _without_templates(text: str) -> str:
    # A set of characters is looked for much faster than the alternatives.
    return TEMPLATE.sub("", text) if re.search(r"[{<\[($&#%]", text) else text


def is_real(text: str) -> bool:
    """Whether a literal is no placeholder that a person wrote into an example."""
    return not PLACEHOLDER.search(text)


def looks_random(text: str) -> bool:
    """Whether a literal that is called a secret is rather one than a word, a path, a template."""
    text, whole = _without_templates(text), text
    if len(text) < 6 or not re.search(r"[A-Za-z]", text):
        return False
    has_digit = bool(re.search(r"[0-9]", text))
    return bool(
        (
            piece_length(text) < (3.0 if has_digit else 2.0)
            or common_pairs(text) < (0.7 if has_digit else 0.6)
            or (has_digit and HEX.fullmatch(text))
        )
        # A short text cannot reach 3 bits: ten different characters have 3.3.
        and entropy(text) >= min(3.0, 0.85 * math.log2(len(text)))
        and not NO_SECRET.search(whole)
        and is_real(whole)
    )


def is_token(text: str) -> bool:
    """Whether a literal looks made by a machine, whatever it is called; a UUID names things."""
    return len(text) >= 16 and looks_random(text) and not UUID.fullmatch(text)


def is_bare_token(text: str) -> bool:
    """The same for a literal without quotes, which in code could be an identifier."""
    return is_token(text) and bool(
        HEX.fullmatch(text) or piece_length(text) < 2.4 or common_pairs(text) < 0.7
    )


def is_password(text: str) -> bool:
    """Whether it looks random, or made up for a form that asks for all kinds of characters."""
    kinds = (r"[a-z]", r"[A-Z]", r"[0-9]", r"[!@#$%^&*?~+=]")
    made_up = all(re.search(kind, _without_templates(text)) for kind in kinds)
    return looks_random(text) or (made_up and not NO_SECRET.search(text) and is_real(text))


def _is_varied(text: str) -> bool:
    """Whether a token with an unmistakable prefix is no 'xoxb-put-it-here'."""
    rest = text[6:]
    return is_real(text) and (
        bool(re.search(r"[0-9]", rest)) or rest.lower() != rest != rest.upper()
    )


def _is_basic_auth(text: str) -> bool:
    """Whether it decodes to 'user:password'."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False
    return b":" in decoded[1:-1] and decoded.isascii() and decoded.decode("ascii").isprintable()


# -- tokens with a prefix ----------------------------------------------------------------------

# Not inside a word; but right behind an escape in a string literal: "…\nsk-…".
START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"
END = r"(?![A-Za-z0-9_-])"
W = r"[A-Za-z0-9_-]"


@dataclass(frozen=True)
class Token:
    """A credential that is known by its prefix.

    Attributes:
        placeholder: what it is replaced by.
        head: pattern of the prefix. Where two match at one place, the first of the table counts.
        body: pattern of the rest. Most state a least length and take the whole run of characters,
            since issuers lengthen their tokens.
        gate: what the whole token must also pass.
    """

    placeholder: str
    head: str
    body: str
    gate: Callable[[str], bool] = is_real


TOKENS = (
    Token(PRIVATE_KEY, r"AGE-SECRET-KEY-1", r"[0-9A-Z]{58}"),
    Token("REDACTED_AWS_KEY", r"(?:A3T[A-Z0-9]|A(?:KI|SI|BI|CC)A)", r"[A-Z0-9]{16}" + END),
    Token("REDACTED_GITHUB_TOKEN", r"gh[pousr]_", r"[A-Za-z0-9_]{36,}+"),
    Token("REDACTED_GITHUB_FINE_GRAINED_TOKEN", r"github_pat_", r"[A-Za-z0-9_]{22,}+", _is_varied),
    Token(
        "REDACTED_GITLAB_TOKEN",
        r"(?:gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat|ffct)-|GR1348941)",
        W + r"{20,}+(?:\.[0-9a-z]{9})?",
        _is_varied,
    ),
    Token("REDACTED_GOOGLE_API_KEY", r"AIza", W + r"{35,}+"),
    Token("REDACTED_GOOGLE_CLIENT_SECRET", r"GOCSPX-", W + r"{28,}+"),
    Token("REDACTED_GOOGLE_OAUTH_TOKEN", r"ya29\.", r"[A-Za-z0-9_.-]{20,1000}+", is_token),
    Token("REDACTED_ANTHROPIC_KEY", r"sk-ant-", W + r"{20,}+"),
    Token("REDACTED_OPENAI_KEY", r"sk-", W + r"{20,}+", is_token),
    Token("REDACTED_HUGGINGFACE_TOKEN", r"(?:hf|api_org)_", r"[A-Za-z0-9]{30,}+", _is_varied),
    Token("REDACTED_STRIPE_KEY", r"[sr]k_(?:live|test|prod)_", r"[A-Za-z0-9]{12,}+"),
    Token("REDACTED_STRIPE_WEBHOOK_SECRET", r"whsec_", r"[A-Za-z0-9+/]{24,}+=*", is_token),
    Token(
        "REDACTED_SLACK_TOKEN",
        r"(?:xox[abeoprs](?:\.xox[bp])?|xapp)-",
        r"[A-Za-z0-9-]{10,}+",
        _is_varied,
    ),
    Token(
        "REDACTED_DISCORD_BOT_TOKEN",
        r"[MNO]" + W + r"{23,27}\.",
        W + r"{6}\." + W + r"{27,}+",
        is_token,
    ),
    Token("REDACTED_TELEGRAM_BOT_TOKEN", r"[0-9]{8,10}:A", W + r"{34}" + END, is_token),
    Token("REDACTED_TWILIO_KEY", r"SK", r"(?:[0-9a-f]{32}|[0-9A-F]{32})" + END),
    Token("REDACTED_SENDGRID_KEY", r"SG\.", W + r"{20,24}\." + W + r"{39,}+"),
    Token("REDACTED_MAILGUN_KEY", r"key-", r"[0-9a-f]{32}" + END),
    Token("REDACTED_MAILGUN_KEY", r"[0-9a-f]{32}-[0-9a-f]{8}-", r"[0-9a-f]{8}" + END),
    Token("REDACTED_MAILCHIMP_KEY", r"[0-9a-f]{32}-us", r"[0-9]{1,2}" + END),
    Token("REDACTED_NPM_TOKEN", r"npm_", r"[A-Za-z0-9]{36,}+"),
    Token("REDACTED_PYPI_TOKEN", r"pypi-Ag", W + r"{50,}+"),
    Token("REDACTED_SHOPIFY_TOKEN", r"shp(?:at|ca|pa|ss|ua)_", r"[0-9a-fA-F]{32,}+"),
    Token("REDACTED_DIGITALOCEAN_TOKEN", r"do[opr]_v1_", r"[0-9a-f]{64,}+"),
    Token("REDACTED_DATABRICKS_TOKEN", r"dapi", r"[0-9a-f]{32}(?:-[0-9])?" + END),
    Token("REDACTED_SQUARE_TOKEN", r"sq0[a-z]{3}-", W + r"{22,}+"),
    Token("REDACTED_SQUARE_TOKEN", r"EAAA", W + r"{56,60}" + END, is_token),
    Token("REDACTED_JWT", r"eyJ", W + r"{10,}+\.eyJ" + W + r"{10,}+\." + W + r"{10,}+"),
    Token(  # issuers that are met more rarely share a name
        "REDACTED_API_TOKEN",
        r"(?:gl(?:sa|c)_|dp\.(?:pt|st|ct)\.|pul-|PMAK-|NRAK-|sntry[su]_|rubygems_|dckr_pat_"
        r"|pscale_(?:tkn|oauth|pw)_|gsk_|xai-|pplx-|r8_|lin_api_|ntn_|figd_|tvly-|lsv2_pt_"
        r"|hv[sb]\.|shippo_(?:live|test)_|rdme_|pnu_|xkeysib-|dt0c01\.|duffel_(?:live|test)_"
        r"|EZ[AT]K|fio-u-|AKCp|ATATT3|CFPAT-|sbp_|ops_eyJ|tfp_|ABSK|LTAI|HRKU-AA|CLOJARS_"
        r"|FLWSECK(?:_TEST)?-|fo1_|fm1[ar]_|fm2_|ico-|sm_[aps]at_|EAA[MC]|tk-us-|sha256~|sq[upa]_|sgp_"
        r"|pat[A-Za-z0-9]{14}\.)",
        r"[A-Za-z0-9_.=+/-]{16,1000}+",
        is_token,
    ),
)
TOKEN_PATTERNS = tuple(re.compile(START + token.head + token.body) for token in TOKENS)
HEADS = re.compile(
    f"{START}(?:" + "|".join(f"(?P<t{n}>{token.head})" for n, token in enumerate(TOKENS)) + ")"
)
# Every token holds so many of these characters in a row; nothing else of a text is looked at.
RUN = 20
RUN_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/"
# How far before such a run a head may begin: 'pat' and 14 characters and a dot.
HEAD_REACH = 18

# -- shapes around a rare literal --------------------------------------------------------------


@dataclass(frozen=True)
class Anchored:
    """A credential in a known place.

    Attributes:
        placeholder: what it is replaced by.
        anchor: must stand in the lower-cased text: a cheap first look.
        pattern: its group `secret` is the secret.
        gate: what the secret must also pass.
    """

    placeholder: str
    anchor: str
    pattern: re.Pattern[str]
    gate: Callable[[str], bool] = is_real


ANCHORED = (
    Anchored(  # beside its key id, as an argument, or in a file of credentials
        "REDACTED_AWS_SECRET",
        "akia",
        re.compile(
            r"AKIA[A-Z0-9]{16}['\"`]?[\s,;:|]{1,40}+['\"`]?"
            r"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
        ),
        is_token,
    ),
    Anchored(
        "REDACTED_SLACK_WEBHOOK",
        "hooks.slack.com/",
        re.compile(
            r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<secret>[A-Za-z0-9+/]{40,}+)"
        ),
    ),
    Anchored(
        "REDACTED_DISCORD_WEBHOOK",
        "/webhooks/",
        re.compile(r"/webhooks/(?P<secret>[0-9]{17,20}/[A-Za-z0-9_-]{60,}+)"),
    ),
    Anchored(
        "REDACTED_AZURE_STORAGE_KEY",
        "accountkey=",
        re.compile(r"(?i:AccountKey)=(?P<secret>[A-Za-z0-9+/]{86}==)"),
    ),
    Anchored(
        "REDACTED_AZURE_CLIENT_SECRET",
        "q~",
        re.compile(
            r"(?<![A-Za-z0-9_~.-])(?P<secret>[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})"
            r"(?![A-Za-z0-9_~-])"
        ),
        is_token,
    ),
    Anchored(
        "REDACTED_PASSWORD_IN_URL",
        "://",
        re.compile(r"://[^\s/:@'\"`<>]{0,100}+:(?P<secret>[^\s/@'\"`<>]{6,200}+)@"),
        is_password,
    ),
    Anchored(
        "REDACTED_BASIC_AUTH",
        "basic ",
        re.compile(r"(?i:basic) (?P<secret>[A-Za-z0-9+/]{8,}+={0,2}+)"),
        _is_basic_auth,
    ),
    Anchored(
        "REDACTED_BEARER_TOKEN",
        "bearer ",
        re.compile(r"(?i:bearer) (?P<secret>[A-Za-z0-9_.~+/-]{16,}+={0,2}+)"),
        is_token,
    ),
    Anchored(  # any other scheme, or none
        "REDACTED_AUTHORIZATION",
        "authorization",
        re.compile(
            r"(?i:authorization)['\"`]?\]?\s{0,3}+[:=,]\s{0,3}+['\"`]?(?:[A-Za-z-]{1,20}+ )?"
            r"(?P<secret>[A-Za-z0-9_.~+/-]{16,}+={0,2}+)"
        ),
        is_token,
    ),
)

# -- assignments -------------------------------------------------------------------------------

LITERAL = (
    r"(?:[rbuf@$]{1,2}(?=['\"`]))?"
    r"\\{0,2}(?P<quote>'''|\"\"\"|['\"`])(?P<quoted>[^\s'\"`\\]{8,512}+)\\{0,2}(?P=quote)"
)
QUOTED = (
    # the end of the name, an annotation, an operator, what makes bytes or an object of the literal
    r"(?:[\\'\"`\]]{0,4}+(?:\??[ \t]?:?[ \t]?(?:&'static )?[\w.\[\]|&?]{1,40}+[ \t]?(?==))?"
    r"\s{0,4}+(?:[:=!]?={1,3}+>?|:{1,2}+)[\s(\[]{0,40}+"
    r"(?:[\w.]{0,30}(?:decode|fromhex|decodestring|buffer\.from|secretstr)\(\s{0,40}+)?"
    # or it is a call, as in set_password("…"), or getenv("PASSWORD", "…")
    r"|(?P<call>\(\s{0,40}+)|(?P<default>['\"`],\s{0,40}+))" + LITERAL
)
BARE = r"[ \t]{0,3}+[=:][ \t]{0,3}+(?P<bare>[a-z0-9+/=_~!@#$%^*-]{16,512}+)(?=[\s'\"`\\;,)&]|\Z)"
# By keyword, to be matched in the lower-cased text one after the other: a literal is found many
# times faster than an alternation of them.
ASSIGNMENTS = {
    keyword: re.compile(rf"{keyword}[\w-]{{0,30}}+(?:{QUOTED}|{BARE})")
    for keyword in ("passw", "passphrase", "pwd", "secret", "token", "key", "credential", "auth")
}
# What opens a call whose first argument is the name; what the name has before its keyword.
NAME_START = re.compile(r"(\(['\"`])?([\w.-]*)\Z")
NAME_REACH = 60
PASSWORD_NAME = re.compile(r"passw|passphrase|pwd")
# Names whose literal need not look made by a machine.
STRONG_NAME = re.compile(
    PASSWORD_NAME.pattern + r"|secret|credential"
    r"|(?:api|access|auth|account|private|encrypt(?:ion)?|sign(?:ing)?|master|client|session"
    r"|consumer|license|service|app|bot|bearer|refresh|deploy|admin|oauth)[_.-]?(?:key|token)"
)
# What is shown to everybody, words that only begin like a keyword, and our own placeholders.
PUBLIC_NAME = re.compile(
    r"public[_-]?key|sha[_-]?[0-9]|md5|(?<![a-z])hash(?![a-z])|digest|fingerprint|checksum"
    r"|tokeni[sz]|keyword|keyboard|redacted_"
)
# (placeholder, name, literal): the first row that fits
ASSIGNED_KINDS = (
    (
        "REDACTED_AWS_SECRET",
        re.compile(r"aws|secret_?access_?key"),
        re.compile(r"[A-Za-z0-9/+]{40}"),
    ),
    ("REDACTED_AZURE_STORAGE_KEY", re.compile(r"key"), re.compile(r"[A-Za-z0-9+/]{86}==")),
    ("REDACTED_PASSWORD", PASSWORD_NAME, re.compile(r".*")),
    ("REDACTED_SECRET", re.compile(r"secret|credential"), re.compile(r".*")),
    ("REDACTED_TOKEN", re.compile(r"token|auth"), re.compile(r".*")),
    ("REDACTED_KEY", re.compile(r"key"), re.compile(r".*")),
)
