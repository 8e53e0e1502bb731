"""Thin images on demand: a registry to pull from, which makes an image when it is asked for."""
