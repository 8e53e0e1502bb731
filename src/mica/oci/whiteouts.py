"""Names by which layer archives take things away from lower layers (OCI image-spec, layer.md, "Whiteouts")."""

WHITEOUT_PREFIX = b".wh."
"""`.wh.NAME` removes NAME."""
AUFS_PREFIX = b".wh..wh."
"""Aufs's own files, of no meaning to others."""
OPAQUE_MARKER = b".wh..wh..opq"
"""But for this one: its directory hides everything that lower layers have there."""
