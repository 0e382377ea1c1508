"""From an artifact back to what it was made from, along the parents in the manifests."""

from __future__ import annotations

from forge_mcp.errors import NotFound
from forge_mcp.schemas.manifests import ArtifactKind
from forge_mcp.workspace import Artifact, Workspace

IMPORTED = "imported"  # key of a manifest's settings: the artifact came in a bundle, and from where


def ancestor(workspace: Workspace, artifact: Artifact, kind: ArtifactKind) -> Artifact:
    """The nearest artifact of a kind among the parents, their parents, and so on.

    Raises:
        NotFound: none is named, or it, or one on the way to it, is not there.
    """
    level = [artifact]
    seen: set[str] = set()
    gone: list[str] = []
    while level:
        parents = [p for a in level for p in a.manifest.parents if p not in seen]
        seen.update(parents)
        level = []
        for parent in parents:
            try:
                level.append(workspace.load(parent))
            except NotFound:
                gone.append(parent)
        for found in level:
            if found.manifest.kind == kind:
                return found
    if is_imported(artifact):
        host = artifact.manifest.settings[IMPORTED]["from"]
        raise NotFound(
            f"The {kind} of {artifact.id} is not on this machine.",
            cause=f"it was imported from {host} in a bundle",
            next_step="What came in the bundle can be activated, asked and bundled again; the rest "
            "is done where it was made.",
        )
    raise NotFound(
        f"{artifact.id} does not say which {kind} it was made from.",
        cause=f"{', '.join(gone)} is gone from the workspace"
        if gone
        else "its manifest names no such parent",
        next_step="Run 'forge-mcp retrain' in the repository to make it anew.",
    )


def is_imported(artifact: Artifact) -> bool:
    """Whether an artifact came in a bundle from another machine."""
    return IMPORTED in artifact.manifest.settings


def corpus_of(workspace: Workspace, deployment: Artifact) -> Artifact | None:
    """The corpus in which a deployed model's documents are looked up.

    The one that it was made from; for a deployment that was imported without its code, the newest
    one that `extract` made of the project here; None where there is neither, and the model can only
    be asked without documents.

    Raises:
        NotFound: a deployment that was made here has lost its corpus.
    """
    try:
        return ancestor(workspace, deployment, "corpus")
    except NotFound:
        if not is_imported(deployment):
            raise
        here = workspace.artifacts("corpus", deployment.manifest.project)
        return here[0] if here else None
