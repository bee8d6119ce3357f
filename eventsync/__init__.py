"""eventsync keeps the same records consistent across unlike stores, driven by their changes.

The public names are stated in ``__init__.pyi``. Each is imported when it is first used, so that
``import eventsync`` is fast and needs no optional dependency. Import the stores from their own
packages, as in ``from eventsync.stores.sql import SqlAccessor``, because each may need an extra.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
