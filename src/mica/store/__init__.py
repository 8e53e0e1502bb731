"""Places for the bytes of a repository: one small interface, several implementations."""
