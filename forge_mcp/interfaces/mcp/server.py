"""The MCP server: the skills as tools, artifacts as resources, the Repo Guardian as prompts."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import Tool

import forge_mcp
from forge_mcp.errors import BadInput
from forge_mcp.interfaces.mcp.prompts import add_prompts
from forge_mcp.interfaces.mcp.resources import add_resources, recent_artifacts
from forge_mcp.interfaces.mcp.schemas import describers, output_schema, without_titles
from forge_mcp.interfaces.mcp.tools import ANSWER_SECONDS, SkillTools, takes_project
from forge_mcp.jobs.skills import skills
from forge_mcp.pipeline.context import make_request
from forge_mcp.pipeline.query import release
from forge_mcp.workspace import Workspace

INSTRUCTIONS = """\
AI Forge makes a local language model that knows one repository. When the user says "retrain on \
this repo", call retrain(repo=<absolute path>). To answer questions about the code from that \
model, call query. The single steps are extract, synthesize, validate, train, evaluate, export, \
deploy: each returns the id that the next one takes. retrain, extract, synthesize, validate, \
train, evaluate and export run as jobs: they answer within seconds with a job_id and a state; \
until the job has ended call job_status(job_id, wait_seconds=60) again and again, then read \
`result`. A job goes on when a call is left or the client is closed; job_list finds it again, \
job_cancel stops it, and nothing that was finished is lost. A result with passed=false, or \
state="refused", is a gate that said no: nothing deployed has changed, and `reasons` say why. \
rollback puts the previous model back. doctor says what is wrong with the machine.\
"""
STOP_SECONDS = 30.0


class ForgeServer(MCPServer[Any]):
    """The SDK's server with arguments checked in words, and small schemas."""

    def __init__(self, workspace: Workspace, answer_seconds: float) -> None:
        super().__init__(
            "forge",
            title="AI Forge",
            version=forge_mcp.__version__,
            instructions=INSTRUCTIONS,
            log_level="WARNING",
        )
        self.workspace = workspace
        self.skills = {name: skill for name, skill in skills().items() if skill.tool}
        self.tools = SkillTools(workspace, answer_seconds)
        for skill in self.skills.values():
            self.tools.add_to(self, skill)
        add_resources(self, workspace)
        add_prompts(self)

    async def list_tools(self) -> list[Tool]:
        """The tools with schemas that say everything once: agents read them all."""
        described = describers(self.skills.values())
        return [
            tool.model_copy(
                update={
                    "input_schema": without_titles(tool.input_schema),
                    "output_schema": output_schema(self.skills[tool.name], described),
                }
            )
            for tool in await super().list_tools()
        ]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> Any:
        """Check the arguments first: a name that no skill knows is refused, not dropped.

        Raises:
            ToolError: they are not valid, or the skill failed.
        """
        skill = self.skills.get(name)
        if skill is not None:
            known = {"project"} if takes_project(skill) else set()
            given = {key: value for key, value in arguments.items() if key not in known}
            try:
                make_request(skill, given)
            except BadInput as error:
                raise ToolError(str(error)) from error
        return await super().call_tool(name, arguments, context)

    async def list_resources(self) -> list[Any]:
        """The fixed resources and the newest artifacts."""
        return [*await super().list_resources(), *recent_artifacts(self.workspace)]


def build_server(
    workspace: Workspace | None = None, answer_seconds: float = ANSWER_SECONDS
) -> ForgeServer:
    """A server over a workspace (FORGE_HOME by default).

    Args:
        workspace: where the skills work.
        answer_seconds: how long the tool of a long skill waits for its job.
    """
    return ForgeServer(workspace or Workspace(), answer_seconds)


def serve_stdio() -> int:
    """Serve one client over stdin and stdout until it leaves or a signal comes.

    Returns the exit code: 0 when the client has left, 130 after a signal.
    """
    server = build_server()

    async def stop_on_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                server.tools.stop()
                with anyio.move_on_after(STOP_SECONDS):
                    while server.tools.running:
                        await anyio.sleep(0.05)
                if not server.tools.running:  # a model that still answers could not be unloaded
                    release()
                # The SDK's reader thread is blocked in read(stdin) and cannot be woken: an
                # ordinary exit would wait for the client. Nothing of ours runs any more.
                print("forge-mcp serve: stopped.", file=sys.stderr, flush=True)
                os._exit(130)

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(stop_on_signal)
            await server.run_stdio_async()
            group.cancel_scope.cancel()

    anyio.run(run)
    return 0
