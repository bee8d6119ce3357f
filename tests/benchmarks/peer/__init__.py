"""How the same work is done by other means: one module a peer, each with ``NAME`` and ``measure``.

What a peer runs itself is in ``program``, which knows nothing of eventsync and is run by a Python
of the peer's own; what that needs, in ``requirements``.
"""
