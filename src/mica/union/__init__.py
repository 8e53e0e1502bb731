"""Making one file tree of the layers of an image: the plan, its sheets, and the overlay mount."""
