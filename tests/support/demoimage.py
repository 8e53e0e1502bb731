"""The demo image for tests: built on demand (under a minute), kept in build/demo, shared with demo and benchmarks."""

import pytest
from demo.image import DemoImage, build
from tests.support.tools import need, need_root


@pytest.fixture(scope="session")
def demo_image() -> DemoImage:
    """`.source` is the argument of `mica convert`; `.layout` and `.tag` are for umoci and skopeo."""
    need_root()
    need("mmdebstrap", "mmdebstrap")
    return build()
