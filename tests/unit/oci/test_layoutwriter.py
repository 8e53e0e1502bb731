"""Writing layouts, judged by our own reader and, in tests/engines, by skopeo."""

import io
import threading
from pathlib import Path

import pytest
from tests.unit.oci.samples import Sample, digest_of, make_sample, make_tar, read_all

from mica.errors import UserError
from mica.oci import mediatypes
from mica.oci.layout import open_layout, open_layout_archive
from mica.oci.layoutwriter import LayoutWriter, open_layout_archive_writer
from mica.oci.models import Descriptor
from mica.oci.source import open_image


def put_sample(writer: LayoutWriter, sample: Sample, tag: str) -> None:
    for blob in sample.blobs.values():
        writer.put_blob(io.BytesIO(blob), mediatypes.OCI_LAYER)
    manifest = writer.put_blob(sample.blobs[sample.manifest.digest], mediatypes.OCI_MANIFEST)
    assert manifest == sample.manifest
    writer.put_image(manifest, tag=tag)


def layers(source: str) -> list[bytes]:
    with open_image(source) as image:
        tars = []
        for layer in image.layers:
            with image.open_layer(layer, 1 << 30) as stream:
                tars.append(read_all(stream))
        return tars


def test_written_images_are_read_back_and_keep_each_other(tmp_path: Path) -> None:
    first, second = make_sample(), make_sample([make_tar({"second": b"2"})])
    put_sample(LayoutWriter(tmp_path / "layout"), first, "a")
    put_sample(LayoutWriter(tmp_path / "layout"), second, "b")
    assert layers(f"oci:{tmp_path / 'layout'}:a") == first.tars
    assert layers(f"oci:{tmp_path / 'layout'}:b") == second.tars


def test_tag_moves_to_the_newer_image(tmp_path: Path) -> None:
    second = make_sample([make_tar({"second": b"2"})])
    writer = LayoutWriter(tmp_path / "layout")
    put_sample(writer, make_sample(), "a")
    put_sample(writer, second, "a")
    with open_layout(tmp_path / "layout") as layout:
        assert layout.tags == ["a"]
    assert layers(f"oci:{tmp_path / 'layout'}:a") == second.tars


def test_untagged_image_is_listed_once(tmp_path: Path) -> None:
    writer = LayoutWriter(tmp_path / "layout")
    put_sample(writer, make_sample(), "")
    put_sample(writer, make_sample(), "")
    with open_layout(tmp_path / "layout") as layout:
        assert len(layout.index.manifests) == 1


def test_nothing_but_the_layout_is_left(tmp_path: Path) -> None:
    sample = make_sample()
    put_sample(LayoutWriter(tmp_path / "layout"), sample, "a")
    names = {str(path.relative_to(tmp_path / "layout")) for path in (tmp_path / "layout").rglob("*") if path.is_file()}
    assert names == {"index.json", "oci-layout"} | {f"blobs/sha256/{digest[7:]}" for digest in sample.blobs}


def test_failing_stream_leaves_no_blob(tmp_path: Path) -> None:
    class Failing:
        def read(self, _: int, /) -> bytes:
            raise OSError(5, "Input/output error")

    writer = LayoutWriter(tmp_path / "layout")
    with pytest.raises(UserError, match="Input/output error"):
        writer.put_blob(Failing(), mediatypes.OCI_LAYER)
    assert [path for path in (tmp_path / "layout" / "blobs").rglob("*") if path.is_file()] == []


def test_threads_lose_no_entry(tmp_path: Path) -> None:
    def write(number: int) -> None:
        writer = LayoutWriter(tmp_path / "layout")
        manifest = writer.put_blob(f"{number}".encode(), mediatypes.OCI_MANIFEST)
        writer.put_image(manifest, tag=f"t{number}")

    LayoutWriter(tmp_path / "layout")
    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_layout(tmp_path / "layout") as layout:
        assert layout.tags == [f"t{number}" for number in range(8)]


def test_archive_is_reproducible_and_keeps_its_images(tmp_path: Path) -> None:
    first, second = make_sample(), make_sample([make_tar({"second": b"2"})])
    for name in ("one.tar", "two.tar"):
        with open_layout_archive_writer(tmp_path / name) as writer:
            put_sample(writer, first, "a")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with open_layout_archive_writer(tmp_path / "one.tar") as writer:
        put_sample(writer, second, "b")
    with open_layout_archive(tmp_path / "one.tar") as layout:
        assert layout.tags == ["a", "b"]
    assert layers(f"oci-archive:{tmp_path / 'one.tar'}:a") == first.tars
    assert layers(f"oci-archive:{tmp_path / 'one.tar'}:b") == second.tars
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar", "two.tar"]


def test_archive_stays_as_it_was_after_an_exception(tmp_path: Path) -> None:
    archive = tmp_path / "one.tar"
    with open_layout_archive_writer(archive) as writer:
        put_sample(writer, make_sample(), "a")
    before = archive.read_bytes()
    with pytest.raises(AttributeError), open_layout_archive_writer(archive) as writer:
        put_sample(writer, object(), "b")  # type: ignore[arg-type]
    assert archive.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["one.tar"]


def test_hostile_archive_writes_nothing_outside(tmp_path: Path) -> None:
    target = tmp_path / "inside"
    target.mkdir()
    name = digest_of(b"x")[7:]
    files = {"index.json": b'{"manifests": []}', f"../blobs/sha256/{name}": b"x", f"/blobs/sha256/{name}": b"x"}
    (target / "a.tar").write_bytes(make_tar(files | {"blobs/sha256/../../../evil": b"x"}))
    with open_layout_archive_writer(target / "a.tar") as writer:
        writer.put_image(Descriptor(mediatypes.OCI_MANIFEST, digest_of(b"x"), 1), tag="a")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in target.iterdir()] == ["a.tar"]
