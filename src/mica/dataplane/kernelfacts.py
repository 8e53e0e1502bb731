"""What the running kernel can do: the value that `kerneltest.py` finds out and `keptfacts.py` keeps. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from mica.errors import UserError
from mica.layers.stack import Method


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """`against`: why a method does not work here, by the method's name; empty if it does. `one_by_one`: overlayfs takes
    layers one by one. `resends`: the kernel sends requests that a killed FUSE server had taken and not answered to its
    successor (Linux 6.9); without it a killed server with such requests cannot be replaced."""

    against: Mapping[str, str]
    one_by_one: bool
    resends: bool

    def reason_against(self, method: Method) -> str:
        """Why a method does not work here; empty if it does."""
        return self.against.get(method.value, "")

    @property
    def best(self) -> Method:
        return next(method for method in Method if not self.reason_against(method))

    def choose(self, wanted: Method | None) -> Method:
        """The wanted method, or the best one. Raises UserError if the wanted method does not work here."""
        if wanted is None:
            return self.best
        reason = self.reason_against(wanted)
        if reason and wanted is Method.ORDINARY and not self.reason_against(Method.ORDINARY_LOOP):
            return Method.ORDINARY_LOOP
        if reason:
            raise UserError(f"This kernel cannot mount by method {wanted.value!r}: {reason}.")
        return wanted
