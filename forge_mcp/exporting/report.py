"""What an export says of itself: the parity gate's figures and the table of quantisations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forge_mcp.exporting.parity import Parity

UNITS = ("bytes", "KB", "MB", "GB")


@dataclass(frozen=True)
class Compared:
    """One quantisation of a run, measured. `parameters` are the numbers that the file holds."""

    parity: Parity
    bytes: int
    parameters: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file, vocabulary included, for each parameter."""
        return 8 * self.bytes / self.parameters


def quality_table(files: Sequence[Compared], chosen: str) -> str:
    """Sizes and quality over quantisations as a Markdown table, the `chosen` one in bold."""
    rows = [
        "| quantisation | size | bits a weight | same next token | mean KL, nats | right answers "
        "| answers that end | gate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in files:
        parity = one.parity
        name = (
            f"**{parity.quantization}**" if parity.quantization == chosen else parity.quantization
        )
        rows.append(
            f"| {name} | {size(one.bytes)} | {one.bits_per_weight:.2f} "
            f"| {parity.argmax_agreement:.1%} | {parity.mean_kl:.2g} "
            f"| {share(parity.answers)} | {parity.answers_stopped} of {parity.answers_asked} "
            f"| {'passed' if parity.passed else 'refused'} |"
        )
    return "\n".join(rows) + "\n"


def export_report(
    title: str, file: Compared | None, others: Sequence[Compared], unchecked: str | None
) -> str:
    """report.md of an export.

    Args:
        title: what was exported.
        file: the exported file; None where it could not be checked.
        others: the other quantisations, where they were asked for.
        unchecked: why the file could not be checked.
    """
    lines = [f"# {title}", ""]
    if file is None:
        lines += [f"**Not checked** against the run: {unchecked}. It is not to be deployed.", ""]
        return "\n".join(lines)
    parity = file.parity
    lines += [
        f"{parity.quantization}, {size(file.bytes)}, {file.bits_per_weight:.2f} bits a weight. "
        f"Compared with the run itself on {parity.rows} rows of the {parity.split} split:",
        "",
        "| | measured | needed |",
        "|---|---|---|",
        f"| same most likely next token | {parity.argmax_agreement:.2%} of "
        f"{parity.tokens_compared} | {parity.min_argmax_agreement:.0%} |",
        f"| mean KL divergence, nats | {parity.mean_kl:.3g} | at most {parity.max_mean_kl:g} |",
        f"| largest difference of a logit | {parity.max_difference:.3g} | |",
        f"| texts tokenised alike | {parity.texts_tokenized_equal} of {parity.texts_tokenized}"
        f"{_left_out(parity)} | all |",
        f"| chats rendered alike | {parity.chats_rendered_equal} of {parity.chats_rendered} "
        "| all |",
        f"| answers that end | {parity.answers_stopped} of {parity.answers_asked} "
        f"| half of the run's own {parity.run_answers_stopped} |",
        f"| right answers | {share(parity.answers)} (the run itself {share(parity.run_answers)}) "
        "| |",
        "",
    ]
    if others:
        ordered = sorted([file, *others], key=lambda one: -one.bytes)
        lines += ["## Size and quality", "", quality_table(ordered, parity.quantization)]
    return "\n".join(lines)


def _left_out(parity: Parity) -> str:
    """What llama.cpp is known to read otherwise is not compared, and that is said."""
    count = parity.texts_left_out
    return f" ({count} left out, which llama.cpp reads otherwise)" if count else ""


def size(count: float) -> str:
    """Bytes for people, in powers of 1,000: "11.8 MB"."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {UNITS[-1]}"


def share(value: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if value is None else f"{value:.0%}"
