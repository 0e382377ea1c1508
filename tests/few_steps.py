"""Settings with which whole lines take seconds: few training steps, short answers, small examples.

In this folder, which pytest puts on the path for its conftest.py, every group of tests finds it.
"""

from __future__ import annotations

FEW_STEPS = {
    "FORGE_TRAINING__MAX_STEPS": "3",
    "FORGE_TRAINING__EVAL_STEPS": "3",
    "FORGE_TRAINING__VALID_EXAMPLES": "4",
    "FORGE_TRAINING__RANK": "4",
    "FORGE_TRAINING__BATCH_SIZE": "2",
    "FORGE_RAFT__EXAMPLES_PER_BLOCK": "2",
    "FORGE_RAFT__DISTRACTORS": "1",
    "FORGE_RAFT__MAX_DOCUMENT_CHARS": "600",
    "FORGE_QUALITY__MIN_EXAMPLES": "5",
    "FORGE_JUDGING__MAX_EXAMPLES": "3",
    "FORGE_JUDGING__PERPLEXITY_EXAMPLES": "6",
    "FORGE_JUDGING__MAX_TOKENS": "16",
    "FORGE_JUDGING__CLOSED_BOOK_EXAMPLES": "2",
    "FORGE_JUDGING__TEXT_TOKENS": "64",
    "FORGE_JUDGING__RECONSTRUCTION_BLOCKS": "1",
    "FORGE_EXPORTING__PARITY_TOKENS": "128",
    "FORGE_EXPORTING__PARITY_ANSWERS": "1",
    "FORGE_SERVING__NUM_PREDICT": "24",
}
# The models of so few steps are no better than their base; with this the gate lets them pass.
OPEN_GATE = {"FORGE_JUDGING__MAX_PERPLEXITY_RATIO": "1000"}
