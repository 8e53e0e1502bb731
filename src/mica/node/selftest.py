"""Proof, on the running kernel, of what the data plane relies on; and the choice of a method that follows from it.

Each fact is tried for real, with a small union in a mount namespace of its own: that EROFS mounts from a file or by
loop, that overlayfs has data-only layers, asks the next one when the first answers with an error, and sees a file that
appeared in one meanwhile; and that an ordinary lower layer works as target of redirects. What the documentation of
overlayfs calls undefined ("changes to underlying filesystems") is thus known, not hoped for. Takes some 20 ms, in a
child, once for each start of the machine and kernel; the result is kept in a file.
"""

import contextlib
import errno
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mica import linux
from mica.digest import Algorithm
from mica.errors import UserError
from mica.fetch.cache import Cache
from mica.files import mapped_os_errors, replace_file
from mica.metaimage.inode import Inode
from mica.metaimage.writer import write_image
from mica.mount import fuse_abi
from mica.mount.fuse_session import FuseSession, mount_fuse
from mica.mount.imagemount import mount_image
from mica.mount.overlay import OverlayOptions, open_overlay, plan_overlay
from mica.node.directory import NodeDirectory
from mica.node.messages import Question, Result
from mica.node.objectfs import ObjectFileSystem
from mica.node.stack import Method, plan_stack
from mica.repo.localname import LocalName
from mica.repo.objects import Compression, pack
