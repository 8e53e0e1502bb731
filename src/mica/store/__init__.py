"""Where the bytes of a repository live: one small interface, several places."""
