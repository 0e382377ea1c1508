"""A Hugging Face tokenizer in the words of GGUF.

tokenizer.json is the one source: it is what transformers 5 writes, and what a run's tokenizer
wrote beside the merged weights. Three kinds are known to llama.cpp and to this module:

- byte-level BPE ("gpt2"): Llama 3, Qwen, Phi-4-mini, SmolLM, forge-nano and more; how text is cut
  before BPE has a name in llama.cpp (pre_tokenizers.py);
- BPE of SentencePiece with bytes for what it does not know ("llama"): Gemma, Phi-3, Mistral,
  Llama 2; its list of merges becomes scores (sentencepiece.py);
- Unigram ("t5"), with its table of normalisations.

Whatever would be read otherwise than in training is refused by name, but for some rare texts that
no file can help with: `Vocabulary.comparable` names them, and the parity gate compares all others.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forge_mcp.errors import UnsupportedModel
from forge_mcp.exporting.chat_templates import (
    DEFAULT,
    read_chat_templates,
    read_object,
    render_sample,
)
from forge_mcp.exporting.pre_tokenizers import cuts_alike
from forge_mcp.exporting.sentencepiece import BLANK
from forge_mcp.exporting.tokenizer_files import TokenizerFiles, refuse
from forge_mcp.exporting.tokenizer_models import read_pieces

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
# Where generation stops by the text of a token, whatever the keys say (llama-vocab.cpp,
# special_eog_ids).
KNOWN_ENDS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<eos>",
}
# llama.cpp lets these swallow the blanks behind them, where the model's name says phi-3.
PHI3_NOT_STRIPPING = {"<unk>", "<s>", "<|endoftext|>"}
ASCII_BLANKS = " \t\n\v\f\r"
PHI3_NAMES = re.compile(r"phi-?3", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """All that GGUF's tokenizer keys need.

    `tokens`, `kinds` and `scores` have one entry per row of the embedding; `kinds` holds "normal",
    "control", "user_defined", "byte" or "unused" (rows that no token uses). `end_ids`
    are all ids that end a turn, the tokenizer's own EOS first. `chat_templates` are by name, the
    default first.

    `opening` is the special token that every chat begins with, where the tokenizer puts a blank in
    front of a whole text but not behind a special token ("" for others). llama.cpp cannot do that,
    so the file puts none: right for every chat, one token off for a text that begins otherwise.

    `strips` says that blanks behind the special tokens are swallowed, which llama.cpp does for
    models called phi-3 only (`general_name`). `nfc` says that text is brought into Unicode's form
    NFC, which llama.cpp does for none.
    """

    model: Literal["gpt2", "llama", "t5"]
    pre: str
    tokens: list[str]
    kinds: list[str]
    scores: list[float] | None
    merges: list[str] | None
    bos_id: int | None
    end_ids: list[int]
    pad_id: int | None
    unk_id: int | None
    add_bos: bool
    add_eos: bool
    chat_templates: dict[str, str]
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    precompiled_charsmap: bytes | None = None
    opening: str = ""
    strips: bool = False
    nfc: bool = False

    @property
    def chat_template(self) -> str:
        """The default template."""
        return self.chat_templates[DEFAULT]

    def comparable(self, text: str) -> str | None:
        """A text as llama.cpp must be given it, to read what the tokenizer reads of `text`.

        None where llama.cpp is known to read otherwise: some letters beyond ASCII in two families
        (`pre_tokenizers.cuts_alike`); a written ▁, which SentencePiece takes for a blank in some
        places; blanks beyond ASCII behind Phi-3's special tokens; what Unigram's normaliser does to
        characters that combine.
        """
        categories = {unicodedata.category(letter)[0] for letter in text}
        foreign_blank = any(letter.isspace() and letter not in ASCII_BLANKS for letter in text)
        if (
            not cuts_alike(self.pre, text)
            or (self.model == "llama" and BLANK in text)
            or (self.strips and foreign_blank)
            or (self.model == "t5" and (foreign_blank or categories & {"M", "C"}))
        ):
            return None
        if not text.startswith(self.opening):
            text = self.opening + text
        return unicodedata.normalize("NFC", text) if self.nfc else text


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write the keys of a tokenizer through a `gguf.GGUFWriter`."""
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[kind.upper()] for kind in vocabulary.kinds])
    eos, eot, eom = (*place_ends(vocabulary), None, None)[:3]
    for add, value in (
        (writer.add_token_scores, vocabulary.scores),
        (writer.add_token_merges, vocabulary.merges),
        (writer.add_bos_token_id, vocabulary.bos_id),
        (writer.add_eos_token_id, eos),
        (writer.add_eot_token_id, eot),
        (writer.add_eom_token_id, eom),
        (writer.add_pad_token_id, vocabulary.pad_id),
        (writer.add_unk_token_id, vocabulary.unk_id),
        (writer.add_add_bos_token, vocabulary.add_bos),
        (writer.add_add_eos_token, vocabulary.add_eos),
        (writer.add_add_space_prefix, vocabulary.add_space_prefix),
        (writer.add_remove_extra_whitespaces, vocabulary.remove_extra_whitespaces),
        (writer.add_precompiled_charsmap, vocabulary.precompiled_charsmap),
        (writer.add_chat_template, vocabulary.chat_template),
    ):
        if value is not None:
            add(value)
    # The writer's own way for named templates puts them in another order each time.
    keys = {template_key(name): text for name, text in vocabulary.chat_templates.items()}
    keys.pop(DEFAULT)
    if keys:
        writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, list(keys))
        for name, text in keys.items():
            writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), text)


def template_key(name: str) -> str:
    """A template's name as part of a GGUF key: what is no ASCII letter or digit becomes _."""
    return re.sub(r"[^A-Za-z0-9]", "_", name)


def place_ends(vocabulary: Vocabulary) -> list[int]:
    """Ids for the keys EOS, EOT and EOM, in this order, so that every end id stops generation.

    Three ids have a key; those that llama.cpp knows by their text can do without.

    Raises:
        UnsupportedModel: more than three need a key.
    """
    eos, *others = vocabulary.end_ids
    others.sort(key=lambda index: vocabulary.tokens[index] in KNOWN_ENDS)  # stable
    lost = [vocabulary.tokens[i] for i in others[2:] if vocabulary.tokens[i] not in KNOWN_ENDS]
    if lost:
        raise UnsupportedModel(
            "The tokenizer cannot be written as GGUF.",
            cause=f"it ends a turn in {len(vocabulary.end_ids)} ways, and llama.cpp would not stop "
            f"at {', '.join(lost)}",
            next_step="Leave the end tokens that the chat template never writes out of "
            "eos_token_id in generation_config.json.",
        )
    return [eos, *others[:2]]


def general_name(name: str, vocabulary: Vocabulary) -> str:
    """A model's name such that llama.cpp treats its special tokens as the tokenizer does.

    It reads "phi3" or "phi-3" in the name as: blanks behind special tokens are swallowed, and does
    not load such a file where tokens of Phi-3 are missing.
    """
    if vocabulary.strips:
        return name if PHI3_NAMES.search(name) else f"{name} (phi-3)"
    return PHI3_NAMES.sub("phi 3", name)


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read tokenizer.json and the files beside it.

    Args:
        folder: a model folder in Hugging Face format.
        vocab_size: rows of the embedding. Rows without a token are written as unused; added tokens
            without a row are left out, because the model cannot read them either.

    Raises:
        UnsupportedModel: something that GGUF or llama.cpp would read otherwise; it is named.
    """
    files = TokenizerFiles.open(folder)
    pieces = read_pieces(files)
    pieces.add(files, vocab_size)
    tokens, kinds, scores = pieces.rows(files, vocab_size)
    ids = {token: index for index, token in enumerate(tokens) if kinds[index] != "unused"}
    ids |= {token.content: index for index, token in files.added.items()}

    texts = {name: files.named(name) for name in NAMED}
    named = {name: ids.get(text) if text else None for name, text in texts.items()}
    bos, add_bos, add_eos = _added_around(files, named["bos_token"], named["eos_token"])
    ends = _end_ids(folder, named["eos_token"])
    if not ends:
        raise refuse(folder, "it names no end-of-text token, so no answer would ever stop")
    for what, index in (("BOS", bos), *(("EOS", end) for end in ends)):
        if index is not None and not 0 <= index < vocab_size:
            raise refuse(folder, f"its {what} id {index} has no row in the embedding")
    templates = read_chat_templates(folder)
    keys = [template_key(name) for name in templates]
    if len(set(keys)) < len(keys):
        raise refuse(folder, f"the names of its chat templates are alike: {', '.join(templates)}")
    rendered = render_sample(
        folder, templates[DEFAULT], {name: text for name, text in texts.items() if text}
    )
    opening = ""
    if pieces.blank_at_start:
        opening = _opening(files, rendered)
    vocabulary = Vocabulary(
        model=pieces.model,
        pre=pieces.pre,
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        merges=pieces.merges,
        bos_id=bos,
        end_ids=ends,
        pad_id=_within(named["pad_token"], vocab_size),
        unk_id=_within(named["unk_token"], vocab_size),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_templates=templates,
        add_space_prefix=pieces.add_space_prefix,
        remove_extra_whitespaces=pieces.remove_extra_whitespaces,
        precompiled_charsmap=pieces.charsmap,
        opening=opening,
        strips=_strips(files, rendered),
        nfc=pieces.nfc,
    )
    place_ends(vocabulary)
    return vocabulary


def _added_around(
    files: TokenizerFiles, bos: int | None, eos: int | None
) -> tuple[int | None, bool, bool]:
    """BOS, and whether encoding adds it in front and EOS behind, by encoding something."""
    bare = files.backend.encode("a", add_special_tokens=False).ids
    full = files.backend.encode("a", add_special_tokens=True).ids
    if bos is None and len(full) > len(bare) and full[:1] != bare[:1]:
        bos = full[0]  # named nowhere but in what encoding does
    for add_bos in (False, True):
        for add_eos in (False, True):
            if full == [bos] * add_bos + bare + [eos] * add_eos:
                return bos, add_bos, add_eos
    raise refuse(
        files.folder, f"its tokenizer adds other tokens than BOS and EOS: {full} for {bare}"
    )


def _end_ids(folder: Path, eos: int | None) -> list[int]:
    """EOS ids of the tokenizer, config.json and generation_config.json, without repeats."""
    found: list[int] = [] if eos is None else [eos]
    for name in ("config.json", "generation_config.json"):
        value = (read_object(folder / name) or {}).get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(index) is int for index in listed):
            raise refuse(folder, f"the eos_token_id of its {name} is no number")
        found += listed
    return list(dict.fromkeys(found))


def _opening(files: TokenizerFiles, rendered: str) -> str:
    """The special token that chats begin with."""
    for token in files.added.values():
        if token.special and rendered.startswith(token.content):
            return str(token.content)
    raise refuse(
        files.folder,
        "it puts a blank in front of a whole text but not behind special tokens, and its chats "
        "begin with text; llama.cpp can only do both or neither",
    )


def _strips(files: TokenizerFiles, rendered: str) -> bool:
    """Whether blanks around added tokens are swallowed as llama.cpp does it for Phi-3.

    Other such tokens are let pass where the chat template never puts a blank beside them: then
    only blanks at the very edge of a message are read otherwise.
    """
    swallowing = [token for token in files.added.values() if token.lstrip or token.rstrip]
    others = {
        token.content
        for token in files.added.values()
        if not token.lstrip and not token.rstrip and token.content not in PHI3_NOT_STRIPPING
    }
    texts = {token.content for token in files.added.values()}
    if not swallowing:
        return False
    if (
        not others
        and not any(token.lstrip for token in swallowing)
        and PHI3_NOT_STRIPPING | {"</s>"} <= texts
        and not any(token.content in PHI3_NOT_STRIPPING for token in swallowing)
    ):
        return True
    for token in swallowing:
        text = re.escape(token.content)
        if (token.rstrip and re.search(rf"{text}\s", rendered)) or (
            token.lstrip and re.search(rf"\s{text}", rendered)
        ):
            raise refuse(files.folder, f"its token {token.content!r} swallows blanks beside it")
    return False


def _within(index: int | None, vocab_size: int) -> int | None:
    return index if index is not None and index < vocab_size else None
