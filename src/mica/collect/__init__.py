"""Garbage collection: what nobody needs any more leaves the newest revision, and then the storage."""
