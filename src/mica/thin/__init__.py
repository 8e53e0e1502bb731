"""Thin images: the descriptor that names layers in repositories, and making one from an ordinary image."""
