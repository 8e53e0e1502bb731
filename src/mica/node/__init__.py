"""The kernel data plane of a node: metadata images, the cache, and the object filesystem (docs/design/dataplane.md)."""
