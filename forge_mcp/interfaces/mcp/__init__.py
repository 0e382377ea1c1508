"""The MCP server: tools, resources and prompts from the skills' declarations."""
