"""Quality of a dataset, as the validator measures it."""

from __future__ import annotations

from pydantic import Field

from forge_mcp.schemas.base import Schema


class DataQualityMetrics(Schema):
    """What `validate` found. Shares and scores are in 0-1."""

    total_examples: int = Field(description="Rows that were given, malformed ones too.")
    valid_examples: int = Field(description="Examples that are kept.")
    quality_score_mean: float = Field(description="Of the kept examples.")
    quality_score_std: float
    difficulty_distribution: dict[str, int] = Field(description="Kept examples by difficulty.")
    duplicate_rate: float = Field(description="Share of all examples that repeat another one.")
    avg_oracle_relevance: float = Field(
        description="Mean over the kept examples; 1 = retrieval finds the oracle first."
    )
    avg_distractor_irrelevance: float = Field(
        description="1 − similarity of the nearest distractor to an oracle, mean."
    )
    failure_modes: list[str] = Field(description="Reasons of drops, the most frequent first.")
    diversity: float = Field(description="Evenness of the kinds of fact among the kept examples.")
    difficulty_balance: float = Field(description="Evenness of the difficulties, likewise.")
    leak_rate: float = Field(
        description="Share of all examples that show a document of another split."
    )
    contaminated_examples: int | None = Field(
        description="Examples that hold a HumanEval problem; null: it was not looked for."
    )
