"""A teacher beside synthesize: found before any work, asked when Forge's own rows are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_mcp.pipeline.skill import SkillContext, overlay
from forge_mcp.settings import RaftSettings, TeacherSettings
from forge_mcp.workspace import hash_inputs

if TYPE_CHECKING:
    from forge_mcp.raft import Dataset
    from forge_mcp.raft.teacher_address import Address


@dataclass(frozen=True)
class Teacher:
    """A teacher that is there. `cache` holds what it answered, across datasets."""

    address: Address
    settings: TeacherSettings
    cache: Path
    context: SkillContext

    def teach(self, dataset: Dataset, raft: RaftSettings) -> dict[str, Any]:
        """Add what it writes to a dataset; returns what the dataset is made from by that.

        Raises:
            ForgeError: it failed too often, or in a way that every request shares. Its answers
                are kept, and the same call goes on with them.
        """
        from forge_mcp.raft.authored import Ground
        from forge_mcp.raft.teacher import teach
        from forge_mcp.raft.written import GATE_VERSION

        context = self.context
        taught = teach(
            Ground(dataset.examples, dataset.documents, raft),
            self.address,
            self.settings,
            self.cache,
            check=context.check,
            progress=lambda done, total: context.progress(done, total, "teacher's answers"),
        )
        if taught.failures:
            context.log(
                f"{len(taught.failures)} of {taught.asked} requests to the teacher came to "
                f"nothing, e.g. {taught.failures[0]}. Run the same again to ask only them again.",
                warning=True,
            )
        dataset.examples += taught.examples
        dataset.skipped = dict(sorted({**dataset.skipped, **taught.skipped}.items()))
        rows = [example.model_dump(mode="json") for example in taught.examples]
        return {
            "author": self.address.author,
            "gate_version": GATE_VERSION,
            "examples": hash_inputs({"examples": rows}),
        }


def open_teacher(given: str | None, context: SkillContext) -> Teacher | None:
    """The teacher that the call or the settings name, or None where neither names one.

    Raises:
        InvalidSettings: its address says nothing valid, or it refuses the key.
        Unavailable: nobody answers there.
        NotFound: Ollama does not have the model.
    """
    settings: TeacherSettings = overlay(context.settings.teacher, address=given)
    if not settings.address:
        return None
    from forge_mcp.raft.teacher import require_teacher
    from forge_mcp.raft.teacher_address import parse_address, where_it_goes

    address = parse_address(settings.address, context.settings.serving.ollama_host)
    cache = context.workspace.home / "cache" / "teacher"
    require_teacher(address, settings, cache)
    context.log(where_it_goes(address), warning=not address.on_this_machine)
    return Teacher(address, settings, cache, context)
