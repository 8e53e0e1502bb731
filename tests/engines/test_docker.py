"""A Docker Engine on the graph driver: what people do with images and containers, ordinary and thin ones alike."""

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.aufs import HAS_AUFS
from tests.support.dockers import (
    Docker,
    Host,
    add_member,
    base_layers,
    image_archive,
    running_docker,
    running_host,
    short_directory,
    tar_tree,
)
from tests.support.newer import newer_system, propagating
from tests.support.registry import real_registry
from tests.support.tars import by_tarfile
from tests.support.tools import need, need_root

pytestmark = pytest.mark.engines
ORDINARY, THIN = "base/ordinary:1", "base/thin:1"
# What a container can do to its files. On a thin image half of it leaves an upper directory without content.
WORK = """
set -e
echo new > /etc/new; ln /etc/new /etc/link; rm /data/2; rm -r /data/inner; mkdir /data/inner; echo again > /data/inner/x
chown 77:88 /data/3; chmod 600 /data/4; ln /data/5 /data/five; mv /data/6 /data/six; mv /moved /was-moved
echo more >> /data/7; touch -d '2001-02-03 04:05:06' /data/8; mkfifo /fifo; mknod /device c 1 3; ln -s ../x /data/sym
dd if=/dev/zero of=/holes bs=1 count=1 seek=3000000 2>/dev/null; chmod 700 /opaque
mkdir -p /a/b/c; echo deep > /a/b/c/d; mv /etc/passwd /etc/p; mv /etc/p /etc/passwd; rm /data/9; ln -s 8 /data/9
touch -d '2001-02-03 04:05:06' /data
"""


WAYS = [
    pytest.param("", id=""),
    pytest.param("newer", id="newer", marks=pytest.mark.newer),
    pytest.param(
        "aufs", id="aufs", marks=pytest.mark.skipif(not HAS_AUFS, reason="make kernels AUFS=… has such a kernel")
    ),
]


@pytest.fixture(scope="module", params=WAYS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    need_root()
    with ExitStack() as stack:
        work, system = stack.enter_context(short_directory()), None
        if request.param == "newer":
            stack.enter_context(propagating(work))
            system = newer_system()
        if request.param == "aufs":
            host = stack.enter_context(running_host(work, "--storage-opt", "mica.union=aufs", is_external=True))
        else:
            host = stack.enter_context(running_host(work, system=system))
        host.docker("load", stdin=image_archive(base_layers(), ORDINARY))
        archive = work / "thin.tar"
        source = host.image.publication.thin
        copy = [need("skopeo", "skopeo"), "copy", "--quiet", source, f"docker-archive:{archive}:{THIN}"]
        subprocess.run(copy, check=True, capture_output=True)
        host.docker("load", "--input", archive)
        yield host


@pytest.fixture(scope="module")
def docker(host: Host) -> Docker:
    return host.docker


@pytest.fixture(scope="module")
def stock() -> Iterator[Docker]:
    """The same engine on overlay2."""
    need_root()
    with short_directory() as work, running_docker(work, "overlay2") as stock:
        stock("load", stdin=image_archive(base_layers(), ORDINARY))
        yield stock


@pytest.fixture(params=[ORDINARY, THIN], ids=["ordinary", "thin"])
def base(request: pytest.FixtureRequest) -> str:
    image: str = request.param
    return image


def test_a_thin_image_has_its_layers_nowhere_on_the_engine(host: Host) -> None:
    assert host.docker.inspect(THIN, "{{len .RootFS.Layers}} {{.Size}}").split()[0] == "1"
    assert int(host.docker.inspect(THIN, "{{.Size}}")) < 1000
    assert host.docker.run(THIN, "cat", "/opaque/shown", "/data/1") == "shown\nreplaced"


def test_what_a_container_sees_is_what_it_sees_on_overlay2(docker: Docker, stock: Docker, base: str) -> None:
    assert docker.tree(base) == stock.tree(ORDINARY)
    look = "stat -c '%A %u %g %Y %n' /tmp /bin/suid /data/3; ls /opaque; ls /gone; stat -c %h /data/hard"
    assert docker.run(base, "sh", "-c", look) == stock.run(ORDINARY, "sh", "-c", look)
    # overlay2 of this version gives every container a root directory of its own making.
    assert docker.run(base, "stat", "-c", "%a", "/") == "751"


def test_the_life_of_a_container(docker: Docker, base: str, tmp_path: Path) -> None:
    name = "life"
    docker("run", "-d", "--name", name, "--network", "none", base, "sleep", "1000")
    try:
        assert docker("exec", name, "sh", "-c", "echo 1 > /one; cat /one") == "1"
        (tmp_path / "in").write_bytes(b"in\n")
        docker("cp", tmp_path / "in", f"{name}:/data/in")
        assert docker("exec", name, "cat", "/data/in") == "in"
        docker("cp", f"{name}:/opaque/shown", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"shown\n"
        # A newer engine opens the files that it mounts over for writing.
        changes = [line for line in docker("diff", name).splitlines() if not re.match("C /etc/(host|resolv)", line)]
        assert changes == ["C /data", "A /data/in", "A /one"]
        assert "5B (virtual" in docker("ps", "-s", "--filter", f"name={name}")
        merged = Path(docker.inspect(name, "{{.GraphDriver.Data.MergedDir}}"))
        assert (merged / "one").read_bytes() == b"1\n"
        docker("restart", "-t", "0", name)
        assert docker("exec", name, "cat", "/one") == "1"
        assert tar_tree(docker.binary("cp", f"{name}:/one", "-"))["one"][-1] == b"1\n"
        docker("stop", "-t", "0", name)
        assert not (merged / "one").exists()
        docker("cp", f"{name}:/one", tmp_path / "one")
        assert (tmp_path / "one").read_bytes() == b"1\n"
    finally:
        docker("rm", "-f", name)
    assert not merged.exists()


def test_diff_commit_and_export_are_as_on_overlay2(docker: Docker, stock: Docker, base: str) -> None:
    trees, differences, committed = [], [], []
    for engine, image in ((docker, base), (stock, ORDINARY)):
        engine("run", "--name", "work", "--network", "none", image, "sh", "-c", WORK)
        try:
            differences.append(engine("diff", "work").splitlines())
            trees.append(_without_times(tar_tree(engine.binary("export", "work"))))
            engine("commit", "work", "committed:1")
            committed.append(_without_times(engine.tree("committed:1")))
        finally:
            engine("rm", "work")
            engine("rmi", "committed:1")
    # Copied up and then as before: changed for us, the same for an engine that compares attributes.
    same = {"C /data/5", "C /etc/passwd"}
    assert sorted(set(differences[0]) - same) == sorted(set(differences[1]) - same)
    assert trees[0] == trees[1]
    assert committed[0] == committed[1]


def _without_times(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """The containers did not run in the same second; what has a time of 2001 or 2020 keeps it."""
    return {name: (*seen[:5], seen[5] if seen[5] < 1_700_000_000 else 0, *seen[6:]) for name, seen in tree.items()}  # type: ignore[operator]


def test_a_committed_image_runs_again_and_goes_on(docker: Docker, base: str) -> None:
    image = base
    for number in range(3):
        docker(
            "run",
            "--name",
            "step",
            "--network",
            "none",
            image,
            "sh",
            "-c",
            f"echo {number} >> /steps; rm /data/1{number}",
        )
        docker("commit", "step", image := f"steps:{number}")
        docker("rm", "step")
    assert docker.run(image, "sh", "-c", "cat /steps; ls /data | wc -l").split() == ["0", "1", "2", "19"]
    docker("rmi", *[f"steps:{number}" for number in (2, 1, 0)])


DOCKERFILE = """
FROM {base} AS one
RUN echo built > /built && rm /data/1 && mv /moved /was && chown 5:6 /data/3
COPY file /copied/file
ADD archive.tar /added/
RUN cat /added/inside /copied/file && mkdir /made && chmod 711 /made
FROM {base}
COPY --from=one /built /copied /was /target/
COPY --from=one /data/3 /data/3
RUN ls /target/deep
"""
SCRATCH = """
FROM scratch
COPY --from={base} / /
ADD archive.tar /
COPY thin.json /
RUN cat /inside
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"copied\n")
    (tmp_path / "thin.json").write_bytes(b"any file can have this name\n")

    def fill(tar: tarfile.TarFile) -> None:
        add_member(tar, "inside", data=b"inside\n", mode=0o640, uid=9)

    (tmp_path / "archive.tar").write_bytes(by_tarfile(fill))
    return tmp_path


@pytest.mark.parametrize("builder", ["0", "1"], ids=["classic", "buildkit"])
def test_builds_are_as_on_overlay2(docker: Docker, stock: Docker, base: str, builder: str, context: Path) -> None:
    trees = []
    for engine, image in ((docker, base), (stock, ORDINARY)):
        found = {}
        for name, text in (("multi", DOCKERFILE), ("scratch", SCRATCH)):
            (context / "Dockerfile").write_text(text.format(base=image))
            engine("build", "--network", "none", "-t", f"built/{name}", context, DOCKER_BUILDKIT=builder)
            found[name] = _without_times(engine.tree(f"built/{name}"))
        trees.append(found)
        engine("rmi", "built/multi", "built/scratch")
    assert trees[0]["multi"] == trees[1]["multi"]
    # COPY from / takes thin.json along only where it is one of the image's files: it is none.
    assert trees[0]["scratch"] == trees[1]["scratch"]
    assert trees[0]["scratch"]["thin.json"][-1] == b"any file can have this name\n"


def test_registry_and_archives_keep_digests(docker: Docker, base: str, tmp_path: Path) -> None:
    docker("run", "--name", "derive", "--network", "none", base, "sh", "-c", "echo derived > /derived")
    docker("commit", "derive", "derived:1")
    docker("rm", "derive")
    before, base_id = docker.inspect("derived:1", "{{.Id}}"), docker.inspect(base, "{{.Id}}")
    tree = docker.tree("derived:1")
    with real_registry(tmp_path) as registry:
        name = f"{registry}/derived:1"
        docker("tag", "derived:1", name)
        docker("push", name)
        saved = docker.binary("save", "derived:1")
        docker("rmi", name, "derived:1")
        docker("pull", name)
        assert docker.inspect(name, "{{.Id}}") == before
        assert docker.tree(name) == tree
        docker("rmi", name)
    docker("load", stdin=saved)
    assert docker.inspect("derived:1", "{{.Id}}") == before
    assert docker.tree("derived:1") == tree
    docker("rmi", "derived:1")
    assert docker.inspect(base, "{{.Id}}") == base_id


def test_an_imported_archive_is_an_image(docker: Docker, stock: Docker) -> None:
    """What a container of a thin image exports is an ordinary image of one layer anywhere."""
    container = docker("create", "--network", "none", THIN, "true")
    archive = docker.binary("export", container)
    docker("rm", container)
    trees = []
    for engine in (docker, stock):
        engine("import", "--change", "CMD cat /data/1", "-", "imported:1", stdin=archive)
        assert engine.run("imported:1") == "replaced"
        trees.append(engine.tree("imported:1"))
        engine("rmi", "imported:1")
    assert trees[0] == trees[1]


def test_what_we_save_a_stock_engine_loads(docker: Docker, stock: Docker, context: Path) -> None:
    docker("run", "--name", "work", "--network", "none", ORDINARY, "sh", "-c", WORK)
    docker("commit", "work", "ours:1")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=ORDINARY))
    docker("build", "--network", "none", "-t", "ours:2", context, DOCKER_BUILDKIT="1")
    for image in ("ours:1", "ours:2", ORDINARY):
        before = stock.raw("rmi", image)
        assert before.returncode == 0 or image != ORDINARY
        stock("load", stdin=docker.binary("save", image))
        assert stock.inspect(image, "{{.Id}} {{.RootFS.Layers}}") == docker.inspect(image, "{{.Id}} {{.RootFS.Layers}}")
        assert stock.tree(image) == docker.tree(image)
    docker("rm", "work")
    for engine in (docker, stock):
        engine("rmi", "ours:1", "ours:2")


def test_many_containers_start_at_once(docker: Docker, base: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        outputs = list(pool.map(lambda number: docker.run(base, "sh", "-c", f"echo {number}; cat /data/1"), range(20)))
    assert outputs == [f"{number}\nreplaced" for number in range(20)]


def test_sixty_layers(docker: Docker, base: str, tmp_path: Path) -> None:
    lines = [f"FROM {base}", *(f"COPY {number} /copied/{number}" for number in range(60))]
    for number in range(60):
        (tmp_path / str(number)).write_text(f"{number}\n")
    (tmp_path / "Dockerfile").write_text("\n".join(lines))
    docker("build", "-t", "sixty", tmp_path, DOCKER_BUILDKIT="1")
    assert docker.run("sixty", "sh", "-c", "cat /copied/* | wc -l; cat /data/1").split() == ["60", "replaced"]
    assert len(json.loads(docker.inspect("sixty", "{{json .RootFS.Layers}}"))) > 60
    docker("rmi", "sixty")


def test_images_on_one_thin_base_share_it(docker: Docker) -> None:
    for name in ("left", "right"):
        docker("run", "--name", name, "--network", "none", THIN, "sh", "-c", f"echo {name} > /name; rm /data/1")
        docker("commit", name, f"{name}:1")
        docker("rm", name)
    look = "cat /name; ls /data/1 /data/3 2>/dev/null; true"
    for name in ("left", "right"):
        assert docker.run(f"{name}:1", "sh", "-c", look) == f"{name}\n/data/3"
    layers = [json.loads(docker.inspect(f"{name}:1", "{{json .RootFS.Layers}}")) for name in ("left", "right")]
    assert layers[0][0] == layers[1][0]
    docker("rmi", "left:1", "right:1")


def test_prune_leaves_no_layer(docker: Docker, base: str, tmp_path: Path) -> None:
    home = docker.data / docker("info", "-f", "{{.Driver}}")
    docker("system", "prune", "--force")
    docker("builder", "prune", "--force", "--all")
    before = sorted(path.name for path in home.iterdir())
    (tmp_path / "Dockerfile").write_text(f"FROM {base}\nRUN echo 1 > /1\nRUN echo 2 > /2\n")
    docker("build", "--network", "none", "-t", "pruned", tmp_path, DOCKER_BUILDKIT="1")
    docker("run", "-d", "--name", "stopped", "--network", "none", "pruned", "true")
    assert "Images" in docker("system", "df")
    docker("rmi", "-f", "pruned")
    docker("system", "prune", "--force")
    docker("builder", "prune", "--force", "--all")
    assert sorted(path.name for path in home.iterdir()) == before
