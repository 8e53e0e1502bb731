"""The repository format: bytes and SQLite files to values and back. Knows no store and no network."""
