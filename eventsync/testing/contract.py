"""The conformance suite for accessors: a class that inherits the tests of all its parts."""

from __future__ import annotations

from eventsync.testing.capture import CaptureContract
from eventsync.testing.convergence import ConvergenceContract
from eventsync.testing.crashes import CrashContract
from eventsync.testing.crud import CrudContract
from eventsync.testing.unversioned import UnversionedContract
from eventsync.testing.views import ViewContract

__all__ = ["StoreContract"]


class StoreContract(
    CrudContract,
    ViewContract,
    ConvergenceContract,
    CaptureContract,
    UnversionedContract,
    CrashContract,
):
    """The tests that every accessor must pass.

    Extend this class in a test module, and implement ``accessor``, which makes your accessor::

        class TestIni(StoreContract):
            def accessor(self, record_type, folder, view=None):
                path = folder / f"{record_type.__record__.name}.ini"
                return IniAccessor(record_type, path, view=view)

    ``folder`` belongs to one store and is empty at the first call. A further call with the same
    folder must return a new accessor of the same data, as another process would make it. All record
    types of one store get the same folder, so keep their data apart.

    Override ``index`` if your accessor has no ``default_index``. Override ``steps`` to add moments
    at which the suite lets the process die. If your store cannot hold some values, set the class
    attributes ``holds``, ``odd_text`` and ``longest_key``. Every accessor must pass all other
    tests.
    """
