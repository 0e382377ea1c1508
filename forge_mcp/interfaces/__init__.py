"""The faces, thin: the command line and the MCP server."""
