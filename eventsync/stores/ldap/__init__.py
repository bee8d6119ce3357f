"""Records as the entries of an LDAP directory."""

from __future__ import annotations

from eventsync.stores.ldap.accessor import LdapAccessor

__all__ = ["LdapAccessor"]
