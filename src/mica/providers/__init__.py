"""Where the real layers of a thin image come from: one `LayerProvider` for each source."""
