"""Quality of a dataset, as the validator measures it."""

from __future__ import annotations

from forge_mcp.schemas.base import Schema


class DataQualityMetrics(Schema):
    """What `validate` found. Shares and scores are in 0-1."""

    total_examples: int
    valid_examples: int
    quality_score_mean: float
    quality_score_std: float
    difficulty_distribution: dict[str, int]
    duplicate_rate: float
    avg_oracle_relevance: float
    avg_distractor_irrelevance: float
    failure_modes: list[str]
