"""Mounting images and repositories: file systems, unions and what this kernel can do."""
