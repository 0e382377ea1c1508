"""From an artifact back to what it was made from, along the parents in the manifests."""

from __future__ import annotations

from forge_mcp.errors import NotFound
from forge_mcp.schemas.manifests import ArtifactKind
from forge_mcp.workspace import Artifact, Workspace


def ancestor(workspace: Workspace, artifact: Artifact, kind: ArtifactKind) -> Artifact:
    """The nearest artifact of a kind among the parents, their parents, and so on.

    Raises:
        NotFound: none is named, or one on the way was deleted.
    """
    level = [artifact]
    seen: set[str] = set()
    while level:
        parents = [p for a in level for p in a.manifest.parents if p not in seen]
        seen.update(parents)
        level = [workspace.load(parent) for parent in parents]
        for found in level:
            if found.manifest.kind == kind:
                return found
    raise NotFound(
        f"{artifact.id} does not say which {kind} it was made from.",
        cause="its manifest names no such parent",
        next_step="Run 'forge-mcp retrain' in the repository to make it anew.",
    )
