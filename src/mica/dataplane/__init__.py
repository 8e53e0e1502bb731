"""How the kernel gets an image's files: metadata images, object filesystem, service (docs/design/dataplane.md)."""
