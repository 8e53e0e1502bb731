"""mica: run container images without downloading them."""

__version__ = "0.1.0"
