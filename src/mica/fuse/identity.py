"""How our mounts are told from other mounts, and the error that they give when their server has ended."""

import errno
from typing import Final

FUSE_TYPE: Final = "fuse.mica"
"""File system type of everything that we mount by FUSE."""

REPOSITORY_PREFIX: Final = "mica#"
"""The prefix of a repository's name in the source of its mount."""

OBJECTS_SOURCE: Final = "mica#objects"
"""Source of the mount that holds the content of images: of a node, or of one run."""

SERVER_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""Errors of every call on a FUSE mount whose server has ended, by itself or because its connection was aborted."""
