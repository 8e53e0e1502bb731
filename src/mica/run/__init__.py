"""A container without an engine: from mounted layers and an image config to a finished program run by runc."""
