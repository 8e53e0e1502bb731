"""Image names by Docker's rules."""

import pytest

from mica.errors import UserError
from mica.oci.reference import Reference

SHA = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("library/debian", "docker.io/library/debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("me/thing", "docker.io/me/thing:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:y", "localhost:5000/x:y"),
        (f"localhost:5000/x:y@{SHA}", f"localhost:5000/x:y@{SHA}"),
        (f"debian@{SHA}", f"docker.io/library/debian@{SHA}"),
        ("ghcr.io/a/b/c:v1.2_3-4", "ghcr.io/a/b/c:v1.2_3-4"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("UPPER/x", "UPPER/x:latest"),
        ("a__b/c.d-e--f", "docker.io/a__b/c.d-e--f:latest"),
        ("debian@sha512:" + "0" * 128, "docker.io/library/debian@sha512:" + "0" * 128),
    ],
)
def test_names_are_completed_and_read_back(text: str, full: str) -> None:
    reference = Reference.parse(text)
    assert reference.text == str(reference) == full
    assert Reference.parse(full) == reference


def test_digest_decides() -> None:
    assert Reference.parse(f"a:b@{SHA}").version == SHA
    assert Reference.parse("a:b").version == "b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":",
        "@",
        "a:",
        "a@",
        ":tag",
        "Upper",
        "a b",
        "a/",
        "/a",
        "a//b",
        "a/../b",
        "..",
        "a..b",
        "-a",
        "a_",
        "a___b",
        "a:b:c",
        "a:" + "x" * 129,
        "a:.x",
        "a@sha256:abc",
        "a@sha256:" + "AB" * 32,
        "a@md5:" + "0" * 32,
        f"a@{SHA}/../x",
        f"a@{SHA}@{SHA}",
        "ab" * 32,
        "a" * 256,
        "host.example:port/x",
        "host_.example/x",
        "host.example:123456/x",
        "https://host.example/x",
        "user:pw@host.example/x",
        "a\n",
        "a:b\n",
        "host.example/x?y",
        "déb",
        "[::1]",
        "[::1/x",
    ],
)
def test_bad_names_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Reference.parse(text)
    assert "is not an image name" in str(caught.value)
    assert str(caught.value).count("\n") == 0
