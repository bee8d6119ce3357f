"""Records as the objects of a REST service, which a ``Resource`` or a subclass describes.

It needs the extra ``rest``.
"""

from __future__ import annotations

from eventsync.stores.rest.accessor import RestAccessor
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.auth import Auth, Basic, ClientCredentials, Token
from eventsync.stores.rest.document import Object
from eventsync.stores.rest.ids import OvertakenError
from eventsync.stores.rest.page import Cursor, Links, NextLink, Numbers, OnePage, Pages
from eventsync.stores.rest.path import ABSENT, Place
from eventsync.stores.rest.query_language import jql, phrase
from eventsync.stores.rest.resource import Reference, Resource, Since, Within
from eventsync.stores.rest.service import Service
from eventsync.stores.rest.status import AccessRefusedError

__all__ = [
    "ABSENT",
    "AccessRefusedError",
    "Answer",
    "Auth",
    "Basic",
    "ClientCredentials",
    "Cursor",
    "Links",
    "NextLink",
    "Numbers",
    "Object",
    "OnePage",
    "OvertakenError",
    "Pages",
    "Place",
    "Reference",
    "Resource",
    "RestAccessor",
    "Service",
    "Since",
    "Token",
    "Within",
    "jql",
    "phrase",
]
