"""Mounting a repository as a whole."""
