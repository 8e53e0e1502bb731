"""Container images: names, documents, and the places that keep them. `source.open_image` is the entry."""
