"""Records as the entries of an LDAP directory, with an index of their versions beside it.

It names what users import. It knows nothing of other stores.
"""

from __future__ import annotations

from eventsync.stores.ldap.accessor import LdapAccessor

__all__ = ["LdapAccessor"]
