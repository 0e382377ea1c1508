"""Tokenizers in GGUF: llama.cpp reads every text as transformers does, or the base is refused."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import BYTE_LEVEL, KINDS, SENTENCEPIECE, TEXTS, write_gguf, write_tokenizer
from tokenizer_pair import Pair, edit, read

from forge_mcp import workspace
from forge_mcp.errors import UnsupportedModel
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.pre_tokenizers import PRE_TOKENIZERS
from forge_mcp.exporting.sentencepiece import NoScores, joined_by_scores, scores_of_merges
from forge_mcp.exporting.tokenizer import Vocabulary

FRAGMENTS = (
    *"aAbZ019.,;:!?'\"-_=+*/\\|<>()[]{}#@$%^&~`",
    *(" ", "  ", "    ", " " * 12, "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n "),
    *(
        "it's",
        "WE'VE",
        "don't",
        "I'LL",
        "'d",
        "def ",
        "return ",
        "self.",
        "camelCase",
        "snake_case",
    ),
    *(
        "é",
        "ü",
        "ß",
        "É",
        "ł",
        "ш",
        "ם",
        "ع",
        "ह",
        "中",
        "文",
        "の",
        "한",
        "ﬁ",
        "…",
        "—",
        "’",
        "½",
        "²",
    ),
    *(
        "Ⅷ",
        "٣",
        "१",
        "👩‍👩‍👧",
        "🇩🇪",
        "❤️",
        "\u200b",
        "\u00a0",
        "\u3000",
        "e\u0301",
        "\u2028",
        "\x85",
    ),
)


@st.composite
def any_text(draw: st.DrawFn, added: tuple[str, ...] = ()) -> str:
    """Code, prose, blanks, any character, and the tokenizer's own special tokens among them."""
    parts = [st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")]
    if added:
        parts.append(st.sampled_from(added))
    weights = draw(st.lists(st.integers(0, 9), max_size=16))
    return "".join(
        draw(parts[0] if weight < 7 else parts[1] if weight < 9 else parts[-1])
        for weight in weights
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    opened: dict[str, Pair] = {}

    def pair(kind: str) -> Pair:
        if kind not in opened:
            folder = write_tokenizer(tmp_path_factory.mktemp("tokenizers") / kind, kind)
            if kind in BYTE_LEVEL:
                expose(folder)
            opened[kind] = Pair(folder)
        return opened[kind]

    yield pair
    for one in opened.values():
        one.file.close()


@cache
def exposing_merges() -> dict[str, Any]:
    """BPE that was trained without cuts, on fragments in any order: it joins across all of them.

    With it, a text that is cut at another place gets other tokens.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    pick = random.Random(7)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = BpeTrainer(
        vocab_size=4000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    samples = ["".join(pick.choices(FRAGMENTS, k=12)) for _ in range(4000)]
    tokenizer.train_from_iterator(samples, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def expose(folder: Path) -> None:
    """Give the tokenizer in `folder` those merges."""

    def change(described: dict[str, Any]) -> None:
        model = exposing_merges()
        before = min(token["id"] for token in described["added_tokens"])
        shift = len(model["vocab"]) - before
        described["model"] |= {"vocab": model["vocab"], "merges": model["merges"]}
        for token in described["added_tokens"]:
            token["id"] += shift
        text = json.dumps(described["post_processor"])
        text = re.sub(r'"ids": \[(\d+)\]', lambda found: f'"ids": [{int(found[1]) + shift}]', text)
        described["post_processor"] = json.loads(text)

    edit(folder / "tokenizer.json", change)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_llama_cpp_reads_any_text_as_transformers_does(
    pairs: Callable[[str], Pair], kind: str, data: st.DataObject
) -> None:
    pair = pairs(kind)
    assume(pair.check(data.draw(any_text(pair.added))))


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_texts_and_chats_are_read_alike(pairs: Callable[[str], Pair], kind: str) -> None:
    pair = pairs(kind)
    chat = [{"role": "user", "content": text} for text in TEXTS if text]
    rendered = pair.theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    runs = [" " * count + "x" for count in (1, 2, 7, 8, 9, 31, 64, 65)]
    runs += ["\n" * count for count in (1, 2, 8, 9, 20)]
    assert sum(map(pair.check, (*TEXTS, *runs, rendered))) > 10
    assert all(pair.file.ends(index) for index in pair.vocabulary.end_ids)
    assert pair.file.chat_template == pair.theirs.chat_template


@pytest.mark.parametrize(
    ("kind", "other"),
    [("qwen2", "llama-bpe"), ("llama-bpe", "qwen2"), ("gpt-2", "smollm"), ("tekken", "gpt-4o")],
)
def test_another_name_would_be_seen(tmp_path: Path, kind: str, other: str) -> None:
    """The tests above can fail: with these merges a wrong cut gives other tokens."""
    folder = write_tokenizer(tmp_path / kind, kind)
    expose(folder)
    pair = Pair(folder)
    described = vars(pair.vocabulary) | {"pre": other}
    path = write_gguf(tmp_path / "other.gguf", Vocabulary(**described))
    with GgufModel(path, context=32, threads=1) as file:
        seen = [
            text
            for text in ("x 91 it's", "I'LL do", *TEXTS)
            if file.tokenize(text) != pair.theirs.encode(text, add_special_tokens=False)
        ]
    pair.file.close()
    assert seen


@pytest.mark.parametrize("kind", ["tekken", "gpt-4o", "qwen2"])
def test_where_llama_cpp_cuts_words_otherwise_is_known(
    pairs: Callable[[str], Pair], kind: str
) -> None:
    """Every word that is read otherwise is one that `comparable` leaves out."""
    pair = pairs(kind)
    differing = {
        word
        for letters in itertools.product("abZéüßÉł文\u0301", repeat=3)
        if pair.file.tokenize(word := "".join(letters))
        != pair.theirs.encode(word, add_special_tokens=False)
    }
    if kind == "qwen2":  # which normalises
        assert {unicodedata.is_normalized("NFC", word) for word in differing} == {False}
        return
    assert all(pair.vocabulary.comparable(word) is None for word in differing)
    assert any("\u0301" in word for word in differing)
    assert any("\u0301" not in word for word in differing)


def test_the_expressions_are_those_that_transformers_knows() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    known = {entry.name: entry.steps[0] for entry in PRE_TOKENIZERS}
    common = known.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert common == {"qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o"}
    assert all(known[name] == ("split", GGUF_PRE_TOKENIZER_SPLITS[name]) for name in common)


def test_the_embedded_base(tmp_path: Path) -> None:
    folder = Path(workspace.__file__).parent / "assets" / "forge-nano"
    copied = tmp_path / "nano"
    copied.mkdir()
    for path in folder.glob("*.js*"):
        (copied / path.name).write_bytes(path.read_bytes())
    for path in folder.glob("*.jinja"):
        (copied / path.name).write_bytes(path.read_bytes())
    pair = Pair(copied)
    for text in TEXTS:
        pair.check(text)
    pair.file.close()


@pytest.mark.parametrize("legacy", [False, True])
def test_what_transformers_makes_of_a_llama_tokenizer(tmp_path: Path, legacy: bool) -> None:
    """Its class puts other steps in place of those in tokenizer.json, and so trains with them."""
    from transformers import LlamaTokenizer

    folder = write_tokenizer(tmp_path / "a", "mistral")
    edit(folder / "tokenizer_config.json", lambda config: config.update(legacy=legacy))
    LlamaTokenizer.from_pretrained(str(folder)).save_pretrained(str(tmp_path / "b"))
    if legacy:
        with pytest.raises(UnsupportedModel, match="does not begin with one"):
            read(tmp_path / "b")
        return
    pair = Pair(tmp_path / "b")
    assert pair.vocabulary.opening == "<s>" and not pair.vocabulary.add_space_prefix
    for text in TEXTS:
        pair.check(text)
    pair.file.close()


def test_what_transformers_makes_of_a_gemma_tokenizer(tmp_path: Path) -> None:
    from transformers import GemmaTokenizer

    folder = write_tokenizer(tmp_path / "a", "gemma")
    GemmaTokenizer.from_pretrained(str(folder)).save_pretrained(str(tmp_path / "b"))
    pair = Pair(tmp_path / "b")
    for text in (*TEXTS, " " * 40 + "x"):
        pair.check(text)
    pair.file.close()


@pytest.mark.parametrize("dropped", ["\t", "<0x09>"])
def test_a_tab_with_one_of_its_two_names(tmp_path: Path, dropped: str) -> None:
    folder = write_tokenizer(tmp_path / "gemma", "gemma")
    edit(folder / "tokenizer.json", lambda made: made["model"]["vocab"].pop(dropped))
    pair = Pair(folder)
    for text in ("\t", "a\tb\t\t c", *TEXTS):
        pair.check(text)
    pair.file.close()


# -- scores from merges ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_scores_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    import sentencepiece

    vocabulary = read(write_tokenizer(tmp_path / kind, kind))
    model = sentencepiece.SentencePieceProcessor(
        model_proto=tiny_tokenizers.sentencepiece_model(kind)
    )
    scores = vocabulary.scores
    assert scores is not None
    compared = 0
    for index in range(model.get_piece_size()):
        piece, found = model.id_to_piece(index), vocabulary.kinds[index]
        if found == "normal" and set(piece) != {"▁"}:
            assert vocabulary.tokens[index] == piece
            compared += 1
            if kind != "gemma":  # whose runs of blanks come first, and move the others
                assert scores[index] == model.get_score(index)
        elif model.is_byte(index):
            assert (vocabulary.tokens[index], found) == (piece, "byte")
    assert compared > 200


@settings(max_examples=12, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_scores_join_as_the_merges_do_in_any_model(data: st.DataObject) -> None:
    import sentencepiece
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import generate_merges

    pick = random.Random(data.draw(st.integers(0, 2**32)))
    letters = data.draw(st.sampled_from(["ab", "abc ", "aab  ", "abcdé中 \t"]))
    lines = ["".join(pick.choices(letters, k=pick.randint(1, 40))) for _ in range(60)]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        model_type="bpe",
        vocab_size=data.draw(st.integers(275, 400)),
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_by_whitespace=data.draw(st.booleans()),
        allow_whitespace_only_pieces=data.draw(st.booleans()),
        add_dummy_prefix=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    normal = [
        index
        for index in range(len(pieces))
        if not (model.is_byte(index) or model.is_control(index) or model.is_unknown(index))
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    extracted = {"<unk>", "<s>", "</s>"}
    by_score = {pieces[index]: model.get_score(index) for index in normal}
    merges = generate_merges(vocabulary, by_score)
    bpe = BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)

    def tokenize(text: str) -> list[str]:
        return [token.value for token in bpe.tokenize(text)]

    scores = scores_of_merges(vocabulary, merges, extracted, tokenize)
    assert scores == by_score
    for _ in range(20):
        text = "".join(pick.choices(letters, k=30)).replace(" ", "▁")
        assert joined_by_scores(text, scores) == tokenize(text) == model.encode(text, out_type=str)


def learnt(tokens: str, merges: str) -> dict[str, float]:
    """Scores of a small vocabulary: tokens in the order of ids, merges as "a+b"."""
    from tokenizers.models import BPE

    vocabulary = {token: index for index, token in enumerate(tokens.split())}
    pairs = [(left, right) for left, right in (pair.split("+") for pair in merges.split())]
    model = BPE(vocabulary, pairs)
    return scores_of_merges(
        vocabulary, pairs, set(), lambda text: [token.value for token in model.tokenize(text)]
    )


def test_scores_follow_the_merges_where_ids_do_not() -> None:
    assert learnt("bc ab a b c", "a+b b+c") == {"ab": 0, "bc": -1, "a": -2, "b": -3, "c": -4}
    assert learnt("a b c ab bc", "a+b b+c") == {"a": 0, "b": -1, "c": -2, "ab": -3, "bc": -4}


def test_runs_whose_pairs_are_mixed_but_agree() -> None:
    runs = ["▁" * count for count in range(2, 9)]
    pairs = [(len(run) - cut, cut) for run in runs for cut in range(1, len(run))]
    listed = " ".join("▁" * a + "+" + "▁" * b for a, b in sorted(pairs, reverse=True))
    scores = learnt(" ".join(["▁", "x", *runs]), listed)
    assert joined_by_scores("▁" * 13, scores) == ["▁" * 8, "▁" * 5]


@pytest.mark.parametrize(
    ("tokens", "merges", "named"),
    [
        ("a b c ab abc", "a+b", "'ab' and 'c' are not joined although 'abc' is one"),
        ("a b c ab bc abc", "a+b b+c ab+c", "'a' and 'bc' are not joined"),
        ("a b c d ab bc abc cd", "a+bc a+b c+d b+c ab+c", "are mixed"),
    ],
)
def test_merges_that_no_scores_can_say(tokens: str, merges: str, named: str) -> None:
    with pytest.raises(NoScores, match=re.escape(named)):
        learnt(tokens, merges)
