"""Where skills.yaml, prompts/ and skills/ stand.

In a checkout they are at the repository's root; the wheel carries them as forge_mcp/share/.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from forge_mcp.errors import CorruptArtifact


@cache
def shared_root() -> Path:
    """The folder that holds skills.yaml, prompts/ and skills/.

    Raises:
        CorruptArtifact: the installation lacks them.
    """
    package = Path(__file__).parents[1]
    for root in (package / "share", package.parent):
        if (root / "prompts").is_dir() and (root / "skills.yaml").is_file():
            return root
    raise CorruptArtifact(
        "This installation of AI Forge is incomplete.",
        cause=f"neither {package / 'share'} nor {package.parent} holds prompts/ and skills.yaml",
        next_step="Install it again: pip install --force-reinstall forge-mcp",
    )
