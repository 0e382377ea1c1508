"""The three kinds of tokenizers that llama.cpp knows, in its terms."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Literal

from forge_mcp.exporting.pre_tokenizers import (
    PreTokenizer,
    UnknownPreTokenizer,
    find_pre_tokenizer,
)
from forge_mcp.exporting.sentencepiece import (
    ADDED_SCORE,
    BLANK,
    BYTE_TOKENS,
    UNUSED_SCORE,
    NoScores,
    scores_of_merges,
)
from forge_mcp.exporting.tokenizer_files import TokenizerFiles, brief, flat, refuse


@dataclass
class Pieces:
    """What the model of a tokenizer becomes, before rows are given out."""

    model: Literal["gpt2", "llama", "t5"]
    pre: str
    by_id: dict[int, tuple[str, str, float]]  # text, kind, score
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    charsmap: bytes | None = None
    blank_at_start: bool = False  # in front of a whole text, but not behind a special token
    nfc: bool = False
    kept: set[str] = field(default_factory=set)  # added tokens that the model itself makes

    def add(self, files: TokenizerFiles, vocab_size: int) -> None:
        """Let added tokens take their ids; refuse those that llama.cpp would match otherwise."""
        if self.by_id and (highest := max(self.by_id)) >= vocab_size:
            raise refuse(
                files.folder, f"token id {highest} lies beyond its {vocab_size} embedding rows"
            )
        for index, token in files.added.items():
            text = token.content
            if text in self.kept:
                continue
            if token.single_word:
                raise refuse(files.folder, f"its token {text!r} stands for whole words only")
            normalizer = files.backend.normalizer
            if token.normalized and normalizer and normalizer.normalize_str(text) != text:
                raise refuse(files.folder, f"its added token {text!r} is normalised")
            kind = "control" if token.special else "user_defined"
            self.by_id[index] = (text, kind, 0.0 if self.model == "t5" else ADDED_SCORE)

    def rows(
        self, files: TokenizerFiles, vocab_size: int
    ) -> tuple[list[str], list[str], list[float] | None]:
        """Tokens, kinds and scores, one entry for each row of the embedding."""
        used = {text for text, _, _ in self.by_id.values()}
        if len(used) < len(self.by_id) or "" in used:
            raise refuse(files.folder, "two of its tokens have the same text, or one has none")
        tokens, kinds, scores = [], [], []
        for index in range(vocab_size):
            text, kind, score = self.by_id.get(index, ("", "unused", UNUSED_SCORE))
            if kind == "unused":
                text = f"[PAD{index}]"
                while text in used:
                    text += "_"
            tokens.append(text)
            kinds.append(kind)
            scores.append(score)
        return tokens, kinds, scores if self.model != "gpt2" else None


# -- byte-level BPE --------------------------------------------------------------------------------


def byte_level(files: TokenizerFiles) -> Pieces:
    """Byte-level BPE: pieces of text as pre_tokenizers.py has them, then merges.

    Raises:
        UnsupportedModel: llama.cpp would read it otherwise.
    """
    model = files.backend.model
    _check_bpe(files)
    # NFC leaves almost every text as it is; what other steps do, llama.cpp cannot.
    normalizers = flat(files.normalizer, "normalizers")
    if normalizers not in ([], [{"type": "NFC"}]):
        raise refuse(files.folder, f"its tokenizer normalises text: {brief(files.normalizer)}")
    try:
        entries = find_pre_tokenizer(files.pre_tokenizer)
    except UnknownPreTokenizer as error:
        raise refuse(files.folder, f"its pre-tokenizer is unknown: {error}") from error
    vocabulary: dict[str, int] = files.described["vocab"]
    by_id = {index: (token, "normal", 0.0) for token, index in vocabulary.items()}
    if len(by_id) < len(vocabulary):
        raise refuse(files.folder, "two of its tokens have the same id")
    pairs = files.merges()
    if any(" " in part for pair in pairs for part in pair):
        raise refuse(files.folder, "one of its merges holds a blank")
    return Pieces(
        "gpt2",
        _entry(files, entries, model.ignore_merges).name,
        by_id,
        merges=[f"{first} {second}" for first, second in pairs],
        nfc=bool(normalizers),
    )


def _entry(files: TokenizerFiles, entries: list[PreTokenizer], ignore_merges: bool) -> PreTokenizer:
    """The entry that treats whole tokens as the model does."""
    for entry in entries:
        if entry.ignore_merges == ignore_merges:
            return entry
    # It makes no difference where the merges lead to every token.
    probe = files.backend.model
    probe.ignore_merges = False
    try:
        added = {token.content for token in files.added.values()}
        for token in files.described["vocab"]:
            if token not in added and files.tokenize(token) != [token]:
                raise refuse(
                    files.folder,
                    f"llama.cpp's {entries[0].name!r} and this tokenizer disagree on whether a "
                    f"token may be taken that no merges lead to, such as {token!r}",
                )
    finally:
        probe.ignore_merges = ignore_merges
    return entries[0]


def _check_bpe(files: TokenizerFiles) -> None:
    model = files.backend.model
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise refuse(files.folder, f"its BPE has a {name.replace('_', ' ')}")


# -- SentencePiece ---------------------------------------------------------------------------------

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
PREPEND = {"type": "Prepend", "prepend": BLANK}
AT_BLANKS = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def sentencepiece(files: TokenizerFiles) -> Pieces:
    """BPE of SentencePiece, with bytes for what it does not know.

    Raises:
        UnsupportedModel: llama.cpp would read it otherwise.
    """
    _check_bpe(files)
    vocabulary: dict[str, int] = files.described["vocab"]
    # An ASCII byte may have its character in its place: Gemma's tab has two names for one id, of
    # which a file keeps one or both.
    missing = [
        name
        for name, byte in BYTE_TOKENS.items()
        if name not in vocabulary and (byte > 127 or chr(byte) not in vocabulary)
    ]
    if missing:
        raise refuse(files.folder, f"it has no token {missing[0]}")
    prefix, at_start = _prefix(files)
    # Added tokens that the merges make too, as Gemma's runs of blanks: in a text they are made by
    # merges, and only their own spelling (with ▁ for blanks) would be cut out.
    kept = {
        token.content
        for token in files.added.values()
        if not token.special
        and BLANK in token.content
        and files.tokenize(token.content) == [token.content]
    }
    extracted = {token.content for token in files.added.values()} - kept
    try:
        scores = scores_of_merges(vocabulary, files.merges(), extracted, files.tokenize)
    except NoScores as error:
        raise refuse(files.folder, f"its merges are no scores of SentencePiece: {error}") from (
            error
        )
    by_id: dict[int, tuple[str, str, float]] = {}
    for token, score in scores.items():
        if vocabulary[token] in by_id:
            raise refuse(files.folder, "two of its tokens have the same id")
        by_id[vocabulary[token]] = (token, "normal", score)
    by_id |= {vocabulary[name]: (name, "byte", 0.0) for name in BYTE_TOKENS if name in vocabulary}
    return Pieces(
        "llama",
        "default",
        by_id,
        add_space_prefix=prefix,
        blank_at_start=at_start,
        kept=kept,
    )


def _prefix(files: TokenizerFiles) -> tuple[bool, bool]:
    """Whether a blank is put in front of every piece of text, and in front of a whole text only."""
    normalizers = flat(files.normalizer, "normalizers")
    steps = flat(files.pre_tokenizer, "pretokenizers")
    if steps in ([], [AT_BLANKS]):
        if normalizers == [REPLACE]:
            return False, False
        if normalizers == [PREPEND, REPLACE]:
            return True, False
    elif not normalizers and len(steps) == 1:
        match steps[0]:
            case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": place}:
                if place != "always":
                    return False, place == "first"
                raise refuse(
                    files.folder,
                    "it puts a blank in front of text that does not begin with one; llama.cpp "
                    "puts one in front of every text",
                )
    raise refuse(
        files.folder,
        f"its SentencePiece steps are unknown: {brief(files.normalizer)} "
        f"{brief(files.pre_tokenizer)}",
    )


# -- Unigram ---------------------------------------------------------------------------------------

STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
ONE_BLANK = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": BLANK}


def unigram(files: TokenizerFiles) -> Pieces:
    """Unigram of SentencePiece, with the steps that T5 has.

    Raises:
        UnsupportedModel: llama.cpp would read it otherwise.
    """
    if files.described.get("byte_fallback"):
        raise refuse(files.folder, "it is a Unigram model with bytes for unknown characters")
    match flat(files.normalizer, "normalizers"):
        case [{"type": "Precompiled", "precompiled_charsmap": table}, strip, blanks] if (
            strip == STRIP and blanks == ONE_BLANK
        ):
            charsmap = base64.b64decode(table)
        case _:
            raise refuse(files.folder, f"its normaliser is unknown: {brief(files.normalizer)}")
    match flat(files.pre_tokenizer, "pretokenizers"):
        case [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}]:
            pass
        case _:
            raise refuse(
                files.folder, f"its pre-tokenizer is unknown: {brief(files.pre_tokenizer)}"
            )
    rows: list[tuple[str, float]] = files.described["vocab"]
    across = [token for token, _ in rows if BLANK in token[1:]]
    if across:
        raise refuse(files.folder, f"its token {across[0]!r} reaches across words")
    return Pieces(
        "t5",
        "default",
        {index: (token, "normal", score) for index, (token, score) in enumerate(rows)},
        add_space_prefix=True,
        remove_extra_whitespaces=True,
        charsmap=charsmap,
    )


def read_pieces(files: TokenizerFiles) -> Pieces:
    """What a tokenizer becomes, by its kind.

    Raises:
        UnsupportedModel: llama.cpp would read it otherwise, or its kind is none of the three.
    """
    if files.kind == "BPE":
        return (sentencepiece if files.backend.model.byte_fallback else byte_level)(files)
    if files.kind == "Unigram":
        return unigram(files)
    raise refuse(files.folder, f"its tokenizer is {files.kind}; llama.cpp's are BPE and Unigram")
