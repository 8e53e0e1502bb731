"""The managed form: built, made a plugin, pushed, installed, enabled, used, upgraded, stopped."""

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.dockers import base_layers, running_docker, short_directory, tar_bytes, thin_archive
from tests.support.nodes import FQRN, Published, publish_tars, served
from tests.support.registry import real_registry
from tests.support.tools import need, need_fuse

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_fuse()
    need("mmdebstrap", "mmdebstrap")
    directory = tmp_path_factory.mktemp("plugin") / "plugin"
    done = mica(directory.parent, "plugin", "build", directory, timeout_s=300)
    assert done.code == 0, done.stderr
    return directory


@pytest.fixture(params=[None, "/dev/shm"], ids=["disk", "memory"])
def work(request: pytest.FixtureRequest) -> Iterator[Path]:
    """In memory the plugin needs loop devices, as it does everywhere on older kernels."""
    with short_directory(request.param) as work:
        yield work


@pytest.fixture
def image(work: Path) -> Iterator[Published]:
    (work / "image").mkdir()
    with served(publish_tars(work / "image", base_layers())) as image:
        yield image


def configured(work: Path, image: Published) -> Path:
    """What an administrator has in /etc/mica."""
    etc = work / "etc"
    etc.mkdir()
    (etc / "key.pub").write_bytes(image.publication.key.read_bytes())
    (etc / "config.toml").write_text(f"[repositories.'{FQRN}']\nurls = ['{image.url}']\nkeys = ['/etc/mica/key.pub']\n")
    return etc


def changed(plugin: Path, directory: Path) -> Path:
    """Another version of the plugin."""
    shutil.copytree(plugin, directory, symlinks=True)
    (directory / "rootfs" / "etc" / "newer").write_text("2\n")
    return directory


def test_two_builds_are_the_same_and_small(plugin: Path, tmp_path: Path) -> None:
    done = mica(tmp_path, "plugin", "build", tmp_path / "again", timeout_s=300)
    assert done.code == 0, done.stderr
    archives = [tar_bytes(directory) for directory in (plugin, tmp_path / "again")]
    assert hashlib.sha256(archives[0]).digest() == hashlib.sha256(archives[1]).digest()
    packed = subprocess.run(["gzip", "-6"], input=archives[0], capture_output=True, check=True).stdout
    assert len(packed) < 30_000_000


def test_from_a_registry_to_a_running_container(plugin: Path, work: Path, image: Published) -> None:
    etc = configured(work, image)
    with real_registry(work) as registry:
        name = f"{registry}/mica:1"
        with running_docker(work / "d", "overlay2") as docker:
            docker("plugin", "create", name, plugin)
            docker("plugin", "push", name)
            docker("plugin", "rm", name)
            docker("plugin", "install", "--grant-all-permissions", "--disable", name, f"configuration.source={etc}")
            docker("plugin", "enable", name)
        with running_docker(work / "d", name) as docker:
            assert docker("info", "-f", "{{.Driver}}") == name
            docker("load", stdin=thin_archive(image.publication.descriptor, tag="thin:1"))
            docker("run", "--name", "one", "--network", "none", "thin:1", "sh", "-c", "cat /data/1; echo 1 > /one")
            docker("commit", "one", "derived:1")
            assert docker.run("derived:1", "cat", "/one", "/data/1") == "1\nreplaced"
            docker("run", "-d", "--name", "lives", "--network", "none", "thin:1", "sleep", "1000")
            assert docker("exec", "lives", "cat", "/data/1") == "replaced"
            docker("rm", "-f", "lives", "one")
        newer = f"{registry}/mica:2"
        with running_docker(work / "d", "overlay2") as docker:
            docker("plugin", "disable", "-f", name)
            docker("plugin", "create", newer, changed(plugin, work / "newer"))
            docker("plugin", "push", newer)
            docker("plugin", "rm", newer)
            docker("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", name, newer)
            docker("plugin", "set", name, f"configuration.source={etc}")  # the engine forgets what was set
            docker("plugin", "enable", name)
            assert docker("plugin", "inspect", "-f", "{{.PluginReference}}", name).endswith("mica:2")
        # What was committed is there after the engine's restart and the upgrade.
        with running_docker(work / "d", name) as docker:
            assert docker.run("derived:1", "cat", "/one", "/data/3").startswith("1\n")
        with running_docker(work / "d", "overlay2") as docker:
            started = time.monotonic()
            docker("plugin", "disable", "-f", name)
            # The engine gives a plugin ten seconds to end, then it kills it.
            assert time.monotonic() - started < 9
            docker("plugin", "rm", "-f", name)
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{work}/d/data/" in line]
