"""Tiny tokenizers with the real shape of a family: normaliser, cuts, merges, added tokens, chat.

Each is trained on this package's sources and on texts that tokenizers stumble over. The files are
those that transformers writes: tokenizer.json, tokenizer_config.json, chat_template.jinja.
"""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from forge_mcp.exporting.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

# Where tokenizers differ: contractions, numbers, runs of blanks, line ends, scripts, emoji,
# combining marks, control and zero-width characters.
TEXTS = (
    "def f(x):\n    return x  # it's 3.14159\n",
    "I'll can't WE'VE you'RE it's 12345678 ½ ²³ Ⅷ",
    "a  b   c\td\t\te\n\n\nf \n g\r\nh \r\n\r\n i   ",
    " \n \t\n",
    "naïve café Ünïcödé Straße Ελληνικά русский עברית العربية हिन्दी 中文字 日本語 한국어",
    "emoji 👩‍👩‍👧‍👦 🇩🇪 ❤️ zero\u200bwidth \u00a0nbsp \u3000wide e\u0301 combining",
    "__init__ camelCase snake_case CONST_1 x+=1;y--||z&&!w ?. => -> :: ... ## #! \\n $\"'`",
    "",
)

WORDS = (
    "def return self import from class with open path read write text line lines name names value "
    "values key keys item items list dict str int float None True False if else elif for in while "
    "not and or is raise except try finally yield lambda assert print len range sum min max get "
    "set add update append extend pop parse format encode decode token tokens model models layer "
    "layers train test data batch loss step steps rate = == != += -> : ( ) [ ] { } , . # a the of "
    "to which what how where does this that file files function method answer question code repo "
    "0 1 2 10 42 100 1024 3.14 __init__ self.name self._value camelCase snake_case it's don't"
)

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
LLAMA3 = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] + '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)
LLAMA2 = (
    "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}"
    "{{ ' ' + message['content'] + eos_token }}{%- else -%}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}{%- endif -%}{%- endfor -%}"
)
GEMMA = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role'])"
    " + '\\n' + message['content'] + '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
PHI3 = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}"
    "{{ '<|endoftext|>' }}{%- endif -%}"
)

BYTE_LEVEL = {entry.name: entry for entry in PRE_TOKENIZERS} | {
    "llama3": next(entry for entry in PRE_TOKENIZERS if entry.name == "llama-bpe")
}
SENTENCEPIECE = ("llama2", "mistral", "phi3", "gemma")
KINDS = (*BYTE_LEVEL, *SENTENCEPIECE, "unigram")


def write_tokenizer(folder: Path, kind: str = "qwen2", template: str | None = None) -> Path:
    """Write a tokenizer of one of KINDS into `folder`, made if need be.

    Args:
        folder: of the model.
        kind: a name of `pre_tokenizers.PRE_TOKENIZERS`; "llama3" (that with its own special tokens
            and BOS); "llama2" (SentencePiece, a blank in front of a text), "mistral" (a blank in
            front of every piece of text), "phi3" (as mistral, with its added tokens), "gemma" (no
            blank, many user-defined tokens); "unigram".
        template: a chat template in place of the family's.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, settings, chat = _built(kind)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template or chat, encoding="utf-8")
    return folder


def vocabulary_size(folder: Path) -> int:
    """Entries of the tokenizer in `folder`: the least that an embedding must have."""
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    highest: int = max([*ids, *(token["id"] for token in described["added_tokens"])])
    return highest + 1


def write_gguf(path: Path, vocabulary: Any, name: str = "tiny") -> Path:
    """The smallest file that llama.cpp loads with a vocabulary: a llama of one layer, all zero."""
    import gguf
    import numpy as np

    from forge_mcp.exporting.tokenizer import add_vocabulary, general_name

    width, rows = 32, len(vocabulary.tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(general_name(name, vocabulary))
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(rows)
    add_vocabulary(writer, vocabulary)
    shapes = {"token_embd": (rows, width), "output_norm": (width,)}
    shapes |= {f"blk.0.{norm}_norm": (width,) for norm in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (width, width) for part in ("gate", "up", "down")}
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def corpus() -> list[str]:
    """What the tokenizers are trained on: the same whatever becomes of this repository."""
    pick, known = random.Random(5), WORDS.split()
    lines = []
    for _ in range(1500):
        words = " ".join(pick.choices(known, k=pick.randint(1, 9)))
        lines.append(" " * pick.choice((0, 0, 4, 4, 8, 12)) + words)
    return ["\n".join(lines), *TEXTS]


@cache
def _built(kind: str) -> tuple[str, dict[str, Any], str]:
    """tokenizer.json, what tokenizer_config.json says, and the chat template."""
    if kind in BYTE_LEVEL:
        return _byte_level(BYTE_LEVEL[kind], kind == "llama3")
    if kind in SENTENCEPIECE:
        return _sentencepiece_bpe(kind)
    return _unigram()


# -- byte-level BPE --------------------------------------------------------------------------------


def pre_tokenizer(entry: PreTokenizer) -> Any:
    """The steps of an entry as the tokenizers library writes them."""
    from tokenizers import Regex, pre_tokenizers

    made: list[Any] = []
    value: Any
    for kind, value in entry.steps:
        if kind == "bytes":
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=value))
        elif kind == "digits":
            made.append(pre_tokenizers.Digits(individual_digits=value))
        else:
            made.append(pre_tokenizers.Split(Regex(value), behavior="isolated"))
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def _byte_level(entry: PreTokenizer, llama3: bool) -> tuple[str, dict[str, Any], str]:
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE(ignore_merges=entry.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer(entry)
    tokenizer.decoder = decoders.ByteLevel()
    if entry.name.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    trainer = BpeTrainer(
        vocab_size=560,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if llama3:
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"]
        special += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
        settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    else:
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if llama3:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A",
                    special_tokens=[
                        ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
                    ],
                ),
            ]
        )
    return tokenizer.to_str(), settings, LLAMA3 if llama3 else CHATML


# -- SentencePiece ---------------------------------------------------------------------------------

GEMMA_CONTROL = ["<mask>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_DEFINED = [*("\n" * n for n in range(1, 9)), *("▁" * n for n in range(2, 9)), "<table>"]
PHI3_ADDED = {"<|endoftext|>": False, "<|assistant|>": True, "<|system|>": True, "<|end|>": True}
PHI3_ADDED |= {"<|user|>": True}


@cache
def sentencepiece_model(kind: str) -> bytes:
    """A tokenizer.model as the family trained it, but small."""
    import sentencepiece

    gemma = kind == "gemma"
    options: dict[str, Any] = {
        "model_type": "unigram" if kind == "unigram" else "bpe",
        "vocab_size": 700,
        "character_coverage": 0.9995,
        "byte_fallback": kind != "unigram",
        "split_digits": True,
        "split_by_unicode_script": kind != "phi3",
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": kind == "unigram",
        "normalization_rule_name": "nmt_nfkc" if kind == "unigram" else "identity",
        "add_dummy_prefix": not gemma,
        "max_sentence_length": 100_000,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    if gemma:
        options |= {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
        options |= {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
        options |= {"control_symbols": GEMMA_CONTROL, "user_defined_symbols": GEMMA_DEFINED}
    if kind == "unigram":
        options |= {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    made = io.BytesIO()
    lines = [line for text in corpus() for line in text.split("\n") if "\t" not in line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, **options
    )
    return made.getvalue()


def _sentencepiece_bpe(kind: str) -> tuple[str, dict[str, Any], str]:
    """As transformers converts a tokenizer.model: vocabulary, merges by score, added tokens."""
    import sentencepiece
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import generate_merges

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(kind))
    count = model.get_piece_size()
    vocabulary = {model.id_to_piece(index): index for index in range(count)}
    scores = {model.id_to_piece(index): model.get_score(index) for index in range(count)}
    gemma = kind == "gemma"
    if gemma:
        vocabulary["\t"] = vocabulary["<0x09>"]
    # Gemma's were converted in the order of their ids, the others by score.
    order = {piece: -float(index) for piece, index in vocabulary.items()} if gemma else scores
    plain = {
        piece: order[piece]
        for piece in scores
        if not model.is_control(vocabulary[piece]) and not model.is_byte(vocabulary[piece])
    }
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            generate_merges(vocabulary, plain),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    decoder: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama2":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    if not gemma:
        decoder.append(decoders.Strip(" ", left=1))
    tokenizer.decoder = decoders.Sequence(decoder)
    bos, eos = ("<bos>", "<eos>") if gemma else ("<s>", "</s>")
    named = ["<pad>", eos, bos, "<unk>", *GEMMA_CONTROL] if gemma else ["<unk>", bos]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in named])
    if kind == "phi3":
        tokenizer.add_tokens([AddedToken(eos, rstrip=True, normalized=False)])
        tokenizer.add_special_tokens(
            [AddedToken(text, rstrip=strip, normalized=False) for text, strip in PHI3_ADDED.items()]
        )
    elif not gemma:
        tokenizer.add_special_tokens([AddedToken(eos, normalized=False)])
    else:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in GEMMA_DEFINED])
    if kind != "phi3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    settings = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>"}
    if gemma:
        settings |= {"pad_token": "<pad>", "eos_token": "<end_of_turn>"}
    if kind == "phi3":
        settings |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    text: str = tokenizer.to_str()
    if gemma:  # the library writes one of the two names of the tab, by chance
        described = json.loads(text)
        described["model"]["vocab"] |= dict.fromkeys(("\t", "<0x09>"), vocabulary["\t"])
        text = json.dumps(described)
    return text, settings, {"gemma": GEMMA, "phi3": PHI3}.get(kind, LLAMA2)


def normalisation_table() -> bytes:
    """SentencePiece's own table of normalisations, which unigram's model has."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    proto = vars(protobuf)["ModelProto"].FromString(sentencepiece_model("unigram"))
    table: bytes = proto.normalizer_spec.precompiled_charsmap
    return table


def _unigram() -> tuple[str, dict[str, Any], str]:
    """As transformers converts T5's tokenizer.model."""
    import sentencepiece
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from tokenizers.models import Unigram

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model("unigram"))
    pieces = [
        (model.id_to_piece(index), model.get_score(index))
        for index in range(model.get_piece_size())
    ]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=model.unk_id()))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(normalisation_table()),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    special = ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", model.eos_id())]
    )
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return tokenizer.to_str(), settings, CHATML.replace("\\n", " ")
