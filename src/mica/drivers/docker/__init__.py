"""Docker's graph driver plugin (`docker.graphdriver/1.0`); docs/design/drivers.md."""
