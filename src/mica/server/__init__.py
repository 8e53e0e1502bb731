"""Setting up and watching the server side of a repository (docs/server.md)."""
