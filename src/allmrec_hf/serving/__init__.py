"""Serve trained models to other programs: HTTP, and the tools of an assistant (MCP)."""
