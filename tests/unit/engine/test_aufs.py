"""How a union by AUFS is asked for: branches, options, portions; what follows an error."""

import errno
import os
from pathlib import Path

import pytest

from mica import linux
from mica.engine.aufs import AufsPlan, plan_aufs
from mica.errors import UserError

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
CONTEXT = f',context="{LABEL}"'.encode()
TARGET, XINO = Path("/t"), Path("/dev/shm/x")
COMMON = b"dio,dirperm1,xino=/dev/shm/x"


def plan(lower: list[Path], upper: Path | None = Path("/up"), **more: str) -> AufsPlan:
    return plan_aufs(lower, upper, TARGET, xino=XINO, **more)


def named(found: AufsPlan) -> list[bytes]:
    """The branches in the order in which the kernel gets them."""
    texts = [step.data.removesuffix(CONTEXT) for step in found.steps]
    strings = [text.partition(b"br:")[2] or text.removeprefix(b"append:") for text in texts]
    return [branch for string in strings for branch in string.replace(b",append:", b":").split(b":")]


class Kernel:
    """Answers the call of that number with an error."""

    def __init__(self, failing: int, number: int) -> None:
        self.calls = 0
        self.unmounted: list[Path] = []
        self._failing = failing
        self._number = number

    def mount(self, source: str, target: Path, fstype: str, *, flags: int, data: bytes) -> None:
        assert (source, target, fstype) == ("none", TARGET, "aufs")
        assert bool(flags & linux.MS_REMOUNT) == (self.calls > 0)
        assert data
        self.calls += 1
        if self.calls == self._failing:
            raise OSError(self._number, os.strerror(self._number))


def test_branches_are_named_top_first_with_their_rights() -> None:
    (step,) = plan([Path("/a"), Path("/b")]).steps
    assert step == (0, COMMON + b",br:/up=rw:/a=ro+wh:/b=ro+wh")


def test_without_a_writable_layer_the_union_is_read_only() -> None:
    found = plan([Path(f"/{number}") for number in range(50)], None)
    assert found.steps[0].data.startswith(COMMON + b",br:/0=ro+wh:/1=ro+wh:")
    assert [step.flags for step in found.steps] == [linux.MS_RDONLY, linux.MS_RDONLY | linux.MS_REMOUNT]


@pytest.mark.parametrize("length", [1, 90, 500])
@pytest.mark.parametrize("count", [1, 39, 40, 41, 79, 80, 81, 126, 500])
def test_no_call_says_too_much(count: int, length: int) -> None:
    lower = [Path(f"/{'x' * length}/{number}") for number in range(count)]
    found = plan(lower, label=LABEL)
    assert named(found) == [b"/up=rw", *(os.fsencode(path) + b"=ro+wh" for path in lower)]
    assert found.branches == count + 1
    for step in found.steps:
        assert len(step.data) < 4096
        assert step.data.endswith(CONTEXT)
        assert step.data.count(b"=ro+wh") + step.data.count(b"=rw") <= 40


def test_of_a_layer_that_is_there_twice_the_topmost_counts() -> None:
    assert named(plan([Path("/a"), Path("/b"), Path("/a"), Path("/up")])) == [b"/up=rw", b"/a=ro+wh", b"/b=ro+wh"]


@pytest.mark.parametrize("sign", [":", ",", "="])
def test_paths_that_aufs_cannot_say(sign: str) -> None:
    for lower, upper in (([Path(f"/a{sign}b")], Path("/up")), ([Path("/a")], Path(f"/u{sign}p"))):
        with pytest.raises(UserError, match="AUFS cannot take the path"):
            plan(lower, upper)


def test_a_union_of_nothing() -> None:
    with pytest.raises(UserError, match="at least one layer"):
        plan([], None)


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "The AUFS of this kernel cannot join 101 directories"),
        (errno.EINVAL, "Cannot mount a union of 101 directories by AUFS: Invalid argument"),
    ],
)
def test_a_union_is_there_wholly_or_not_at_all(failing: int, number: int, sentence: str) -> None:
    kernel = Kernel(failing, number)
    found = plan([Path(f"/{number}") for number in range(100)])
    with pytest.raises(UserError, match=sentence) as caught:
        found.mount(kernel.mount, unmount=kernel.unmounted.append)
    assert caught.value.hint
    assert kernel.calls == failing
    # What the first call refused was never mounted: another mount may be at that place.
    assert kernel.unmounted == ([] if failing == 1 else [TARGET])
