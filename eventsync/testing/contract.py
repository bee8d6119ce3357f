"""The conformance suite, whole.

It owns nothing but the sum of its parts.
"""

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
    """What every accessor has to keep, as a class of tests.

    Extend it in a test module and say how your accessor is made::

        class TestIni(StoreContract):
            def accessor(self, record_type, folder, view=None):
                return IniAccessor(record_type, folder / "records.ini", view=view)

    ``folder`` is empty at first and belongs to one store. Called again with the same folder,
    ``accessor`` gives another accessor on the same data, as another process would have it. Override
    ``index`` if the accessor has no ``default_index``, and ``steps`` to name further moments at
    which a process may die. What your kind of store cannot hold you say with the class attributes
    ``holds``, ``odd_text`` and ``longest_key``; everything else is required of all.
    """
