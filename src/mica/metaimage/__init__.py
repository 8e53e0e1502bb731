"""Metadata images: a layer tree as a small EROFS image without file data, whose files point at content by name."""
