"""Adapters of engines: each turns an engine's protocol into calls of `mica.engine`, and nothing more."""
