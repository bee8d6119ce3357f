"""The conformance suite for accessors: the union of its parts."""

from __future__ import annotations

from eventsync.testing.capture import CaptureContract
from eventsync.testing.convergence import ConvergenceContract
from eventsync.testing.crashes import CrashContract
from eventsync.testing.crud import CrudContract
from eventsync.testing.views import ViewContract

__all__ = ["StoreContract"]


class StoreContract(
    CrudContract, ViewContract, ConvergenceContract, CaptureContract, CrashContract
):
    """The tests that every accessor must pass.

    Extend this class in a test module, and define how your accessor is made::

        class TestIni(StoreContract):
            def accessor(self, record_type, folder, view=None):
                path = folder / f"{record_type.__record__.name}.ini"
                return IniAccessor(record_type, path, view=view)

    ``folder`` belongs to one store and is empty at first. A second call with the same folder must
    return another accessor of the same data, as another process would have it. The types of one
    store share a folder, so keep their data apart.

    Override ``index`` if your accessor has no ``default_index``. Override ``steps`` to name further
    moments at which the process may die. If your store cannot hold some values, set the class
    attributes ``holds``, ``odd_text`` and ``longest_key``. Everything else is required of every
    accessor.
    """
