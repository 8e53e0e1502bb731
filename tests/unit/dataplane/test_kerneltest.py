"""The test of what this kernel does: what stops the test itself is told in a sentence."""

import errno
from pathlib import Path

import pytest

from mica.dataplane import kerneltest
from mica.errors import MicaError


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(work))

    monkeypatch.setattr(kerneltest, "_test_in_private", fail)
    with pytest.raises(MicaError, match=rf"Cannot test this kernel in {tmp_path}: No space left on device"):
        kerneltest.test_kernel(tmp_path)
    assert list(tmp_path.iterdir()) == []
