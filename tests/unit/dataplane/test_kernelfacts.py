"""Which method follows from what a kernel was seen to do; the self-test: tests/system/test_selftest.py."""

import pytest

from mica.dataplane.kernelfacts import KernelFacts
from mica.errors import UserError
from mica.layers.stack import Method

NEWEST: dict[str, str] = {method.value: "" for method in Method if method.uses_images}
LINUX_6_6 = {**NEWEST, "kernel": "it needs Linux 6.12", "ordinary": "it needs Linux 6.12"}
LINUX_6_1 = {**LINUX_6_6, "loop": "it needs Linux 6.5"}
WITHOUT_EROFS = dict.fromkeys(NEWEST, "No such device")


@pytest.mark.parametrize(
    ("against", "best"),
    [
        (NEWEST, Method.KERNEL),
        (LINUX_6_6, Method.LOOP),
        (LINUX_6_1, Method.ORDINARY_LOOP),
        ({**NEWEST, "kernel": "Input/output error", "loop": "Input/output error"}, Method.ORDINARY),
        (WITHOUT_EROFS, Method.REPOSITORY),
    ],
)
def test_the_best_method_that_works(against: dict[str, str], best: Method) -> None:
    facts = KernelFacts(against, one_by_one=True, resends=True)
    assert facts.choose(None) is best
    assert facts.choose(best) is best


def test_an_ordinary_layer_is_mounted_as_the_kernel_can() -> None:
    facts = KernelFacts(LINUX_6_1, one_by_one=False, resends=False)
    assert facts.choose(Method.ORDINARY) is Method.ORDINARY_LOOP


def test_a_method_that_does_not_work_is_refused_with_its_reason() -> None:
    facts = KernelFacts(LINUX_6_1, one_by_one=False, resends=False)
    with pytest.raises(UserError, match=r"by method 'loop': it needs Linux 6\.5"):
        facts.choose(Method.LOOP)
    with pytest.raises(UserError, match="by method 'ordinary': No such device"):
        KernelFacts(WITHOUT_EROFS, one_by_one=True, resends=True).choose(Method.ORDINARY)
