"""Container images: names, documents, and where they are kept. `source.open_image` is the way in."""
