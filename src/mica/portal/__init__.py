"""Thin images on demand: a registry to pull from, which makes what it is asked for."""
