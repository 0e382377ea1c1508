"""Whether a dataset is good enough to train on."""

from forge_mcp.quality.checks import validate_code_block, validate_raft_example
from forge_mcp.quality.report import generate_quality_report, report_json
from forge_mcp.quality.scores import score_data_quality, score_example
from forge_mcp.quality.validator import VALIDATOR_VERSION, Validation, validate_dataset

__all__ = [
    "VALIDATOR_VERSION",
    "Validation",
    "generate_quality_report",
    "report_json",
    "score_data_quality",
    "score_example",
    "validate_code_block",
    "validate_dataset",
    "validate_raft_example",
]
