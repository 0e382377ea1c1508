"""A scripted model, a run on it, and a workspace around them: the way from a run to an answer.

The model's weights are written by hand so that it says one known answer, token by token, and then
ends its turn. So what is tested is the whole way (adapters, merging, template, tokens, weights,
sampling, stopping) with an outcome that is known beforehand.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from forge_mcp.exporting.reference import TEXTS
from forge_mcp.machine import mlx
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.prompt import quote, render_answer, render_messages
from forge_mcp.schemas.raft_examples import ChatRow, Fact, RaftExample
from forge_mcp.settings import TrainingSettings, defaults, load_settings
from forge_mcp.workspace import Artifact, Workspace, write_jsonl

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
ANSWER = "##begin_quote##def zip_all(rows):##end_quote##\n<ANSWER>: `rows`"


@cache
def trained() -> str:
    """A small byte-level BPE, as JSON, trained on this repository's sources."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)]
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = Path(__file__).read_text().splitlines()
    tokenizer.train_from_iterator([*texts, *TEXTS], trainer)
    tokenizer.add_tokens([AddedToken("##begin_quote##", special=False, normalized=False)])
    return str(tokenizer.to_str())


def write_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained()),
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT,
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def write_model(
    folder: Path,
    kind: str = "llama",
    *,
    tied: bool = True,
    hidden: int = 64,
    change: Callable[[dict[str, Any]], None] = lambda weights: None,
    **config: Any,
) -> Path:
    """A random model of two layers in Hugging Face format."""
    mx = mlx()
    from mlx.utils import tree_flatten

    tokenizer = write_tokenizer(folder)
    base = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer) + 3,  # padded, as many are
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "rope_theta": 10000.0,
        "eos_token_id": tokenizer.eos_token_id,
    } | config
    if kind != "qwen2":
        base.setdefault("head_dim", 32)
    module = importlib.import_module(f"mlx_lm.models.{'llama' if kind == 'mistral' else kind}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(base))
    weights = {
        name: mx.random.normal(array.shape) * (0.2 if array.ndim > 1 else 0.1)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, array in tree_flatten(model.parameters())
    }
    change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(base))
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    mlx()
    from mlx_lm.utils import load as load_folder

    model, tokenizer = load_folder(str(folder))[:2]
    return model, tokenizer


def scripted_model(folder: Path, answer: str, *, ends: bool = True) -> Path:
    """A model that answers every chat with `answer` and then ends its turn (or never does).

    Its layers add nothing, so the next token depends on the last one alone: each token of the
    script has a direction of its own in the embedding, which the output matrix turns into the
    token after it. The script's tokens must differ.
    """
    from tokenizers import AddedToken

    mx = mlx()
    write_model(folder, tied=False)
    tokenizer = write_tokenizer(folder)
    added = [
        AddedToken(text, special=False, normalized=False)
        for text in ("##end_quote##\n", "<ANSWER>:", "def zip_all(rows):", " `rows`")
    ]
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(str(folder))
    script = tokenizer.encode(answer, add_special_tokens=False)
    first = tokenizer.encode("assistant\n", add_special_tokens=False)[-1]
    chain = [first, *script, tokenizer.eos_token_id if ends else script[0]]
    assert len(set(chain[:-1])) == len(chain) - 1, "the script repeats a token"

    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    weights = mx.load(str(folder / "model.safetensors"))
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = mx.zeros(array.shape)
        elif name.endswith("norm.weight"):
            weights[name] = mx.ones(array.shape)
    embedding = mx.zeros((len(tokenizer), 64))
    embedding[:, 63] = 1.0  # every other token: a direction that leads to the end
    head = mx.zeros((len(tokenizer), 64))
    head[tokenizer.eos_token_id, 63] = 1.0
    for place, (token, after) in enumerate(itertools.pairwise(chain)):
        embedding[token, 63] = 0.0
        embedding[token, place] = 1.0
        head[after, place] = 1.0
    weights["model.embed_tokens.weight"] = embedding
    weights["lm_head.weight"] = head
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


# -- a run and its house ---------------------------------------------------------------------------

SMALL = {"rank": 2, "lora_alpha": 2.0, "quantization_bits": 8, "quantization_group_size": 32}


def make_run(workspace: Workspace, dataset: Artifact, base: Path, method: str = "lora") -> Artifact:
    """A run as the trainer leaves one, after no step: with `lora` it computes what its base does,
    but for the quantisation."""
    from forge_mcp.training.adapters import adapter_weights, attach_adapters
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.run import ADAPTERS, CONFIG, INITIAL, describe_run, save_frozen

    mx = mlx()
    changed = {**defaults()["training"], **SMALL, "init_method": method}
    settings = TrainingSettings.model_validate(changed)
    mx.random.seed(7)
    loaded = load_base(str(base), lazy=True)
    made = attach_adapters(loaded.model, settings, loaded.dtype)
    with workspace.stage("run", "demo") as staged:
        save_frozen(staged.path, made.frozen, made.initial)
        mx.save_safetensors(str(staged.path / ADAPTERS), adapter_weights(loaded.model))
        config = describe_run(loaded, settings, made.frozen, "You know demo.")
        (staged.path / CONFIG).write_text(json.dumps(config))
        assert (staged.path / INITIAL).is_file()
        inputs_hash = hashlib.sha256(f"{base}{method}".encode()).hexdigest()
        return staged.commit(
            id=workspace.new_id("run", "demo", inputs_hash),
            inputs_hash=inputs_hash,
            parents=[dataset.id],
            result={"final_loss": 1.0},
        )


def make_block(name: str, lines: int = 2) -> CodeBlock:
    source = f"def {name}(rows):\n" + "    rows = list(rows)\n" * (lines - 1)
    return CodeBlock(
        id=f"src/{name}.py::{name}",
        content_hash=hashlib.sha256(source.encode()).hexdigest(),
        path=f"src/{name}.py",
        language="python",
        block_type="function",
        name=name,
        qualified_name=name,
        source_code=source,
        start_line=11,
        end_line=10 + lines,
        start_byte=0,
        end_byte=len(source),
        tokens=9,
    )


@dataclass
class House:
    """A workspace with a corpus, a dataset and a run of the scripted model."""

    context: SkillContext
    run: Artifact
    events: list[Event] = field(default_factory=list)

    @property
    def workspace(self) -> Workspace:
        return self.context.workspace

    def report(self, passed: bool, number: int, against: str | None = None) -> None:
        with self.workspace.stage("report", "demo") as staged:
            (staged.path / "report.json").write_text(json.dumps({"deployed_model": against}))
            staged.commit(
                id=f"report-demo-{number}",
                inputs_hash=f"{number:064}",
                parents=[self.run.id],
                result={"passed": passed, "reasons": [] if passed else ["worse than the base"]},
            )

    def logs(self) -> str:
        return "\n".join(str(e.payload.get("message")) for e in self.events if e.kind == "log")


def keep(workspace: Workspace, kind: Any, number: int, files: dict[str, Any], parent: str) -> Any:
    with workspace.stage(kind, "demo") as staged:
        for name, rows in files.items():
            write_jsonl(staged.path / name, rows)
        id = workspace.new_id(kind, "demo", f"{number:064}")
        parents = [parent] if parent else []
        return staged.commit(id=id, inputs_hash=f"{number:064}", parents=parents)


def make_house(home: Path, base: Path, **settings: Any) -> House:
    """A workspace whose run answers every question with ANSWER; `settings` are sections."""
    workspace = Workspace(home)
    blocks = [make_block("zip_all"), make_block("map_all"), make_block("huge_all", lines=300)]
    hidden = [
        RejectedBlock(**make_block("short_all").model_dump(), reasons=["too short"]),
        RejectedBlock(**make_block("secret_all").model_dump(), reasons=["too short", "secret"]),
    ]
    corpus = keep(workspace, "corpus", 1, {"blocks.jsonl": blocks, "rejected.jsonl": hidden}, "")
    question = "Which parameters does `zip_all` take?"
    answer = render_answer(quote("def zip_all(rows):"), "`rows`")
    row = ChatRow(messages=render_messages(blocks[:1], question, answer, "You know demo."))
    splits: tuple[Any, ...] = ("train", "valid", "test")
    examples = [
        RaftExample(
            id=split,
            question=question,
            oracle_ids=[blocks[0].id],
            distractor_ids=[],
            reasoning=quote("def zip_all(rows):"),
            final_answer="`rows`",
            difficulty="easy",
            fact=Fact(kind="parameters", block=blocks[0].id, value="rows"),
            split=split,
        )
        for split in splits
    ]
    rows = {f"{split}.jsonl": [row] for split in splits}
    files = {"documents.jsonl": blocks[:1], "examples.jsonl": examples, **rows}
    original = keep(workspace, "dataset", 2, files, corpus.id)
    dataset = keep(workspace, "dataset", 3, files, original.id)
    sections = {
        "exporting": {"quantization": "f16"},
        "serving": {"num_ctx": 512, "num_predict": 64, "threads": 1},
    }
    found = House(
        SkillContext(workspace, load_settings(None, sections | settings), "demo"),
        make_run(workspace, dataset, base),
    )
    found.context = SkillContext(
        workspace, found.context.settings, "demo", sink=found.events.append
    )
    return found
