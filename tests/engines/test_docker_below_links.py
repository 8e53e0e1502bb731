"""An image with members below links of lower layers on a Docker Engine, thin and unpacked by the engine itself."""

import subprocess
from collections.abc import Iterator

import pytest
from tests.support.belowlinks import LAYERS
from tests.support.dockers import Docker, base_layers, driven_engine, image_archive, short_directory
from tests.support.enginelayers import archive_of
from tests.support.nodes import publish_tars, served
from tests.support.tools import need, need_root

pytestmark = pytest.mark.engines
ORDINARY, THIN = "below/ordinary:1", "below/thin:1"


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    need_root()
    layers = [base_layers()[0], *(archive_of(*members) for members in LAYERS)]
    with short_directory() as work:
        (work / "image").mkdir()
        with served(publish_tars(work / "image", layers)) as image, driven_engine(work, image) as (_, docker):
            docker("load", stdin=image_archive(layers, ORDINARY))
            archive = work / "thin.tar"
            copy = [need("skopeo", "skopeo"), "copy", "--quiet", image.publication.thin]
            subprocess.run([*copy, f"docker-archive:{archive}:{THIN}"], check=True, capture_output=True)
            docker("load", "--input", archive)
            yield docker


@pytest.mark.parametrize("image", [ORDINARY, THIN], ids=["ordinary", "thin"])
def test_a_container_has_members_where_links_of_lower_layers_lead(docker: Docker, image: str) -> None:
    look = "stat -c %F /lib /foo /void; cat /lib/new /usr/lib/fresh/k /sec/viasym /made/deep/g /out/h; ls /usr/lib/gone"
    shown = docker.run(image, "sh", "-c", f"{look} 2>&1; true")
    assert shown.splitlines()[:3] == ["symbolic link"] * 3
    assert shown.splitlines()[3].startswith("newestkviasymgh")
    assert "No such file" in shown


def test_thin_and_ordinary_images_are_the_same(docker: Docker) -> None:
    assert docker.tree(THIN) == docker.tree(ORDINARY)
