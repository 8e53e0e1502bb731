"""Any bytes as a mount table: mounts or nothing, and what one mount is called never touches another."""

from hypothesis import given
from hypothesis import strategies as st

from mica.mountinfo import Mount, parse_mountinfo

# The bytes that divide fields and lines, often enough.
fields = st.lists(st.one_of(st.sampled_from([b" ", b"\n", b"-", b"\\", b":", b"/", b"0"]), st.binary(max_size=3))).map(
    b"".join
)
names = st.binary(max_size=40).filter(lambda name: b"\0" not in name)
BEFORE = b"1 1 0:1 / / rw - ext4 /dev/x rw"
AFTER = b"9 1 0:9 / /proc rw shared:1 - proc proc rw"


def escaped(name: bytes) -> bytes:
    """As mangle() and seq_path() of the kernel write it."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in name)


@given(fields)
def test_any_bytes(data: bytes) -> None:
    for mount in parse_mountinfo(data):
        assert mount.number >= 0 or b"-" in data


@given(names, names, names, st.lists(st.sampled_from([b"shared:1", b"master:2", b"unbindable"]), max_size=3))
def test_any_name_is_read_back(target: bytes, subtype: bytes, source: bytes, optional: list[bytes]) -> None:
    rest = b"".join(tag + b" " for tag in optional)
    line = b"5 1 0:7 / /%s rw %s- fuse.%s %s ro,user_id=1000" % (
        escaped(target), rest, escaped(subtype), escaped(source),
    )  # fmt: skip
    first, mount, last = parse_mountinfo(b"\n".join([BEFORE, line, AFTER, b""]))
    assert [first, last] == parse_mountinfo(BEFORE) + parse_mountinfo(AFTER)
    assert mount == Mount(b"/" + target, b"fuse." + subtype, source, b"rw", 5, b"ro,user_id=1000", (0, 7))
