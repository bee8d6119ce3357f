"""A simulated REST service that holds JSON objects.

``/{kind}/{key}`` is an object and ``/{kind}`` is the list. The service has strong entity tags and
three ways of paging.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from servers.http_service import Asked, HttpService

__all__ = ["ObjectServer"]


class ObjectServer(HttpService):
    """The service. ``objects``: by kind and key; a test may change them, as another client would.

    ``ids``: assign ids to new objects. ``etags``: return entity tags. ``paging``: the way of
    paging. ``token``: the token that requests must have; ``/token`` returns it. ``read_only``:
    refuse writes.
    """

    def __init__(self, *, ids: bool = False, etags: bool = True, paging: str = "link") -> None:
        super().__init__()
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}
        self.ids, self.etags, self.paging = ids, etags, paging
        self.token: str | None = None
        self.tokens_given = 0
        self.read_only = False
        self._number = 0

    def act(self, asked: Asked) -> tuple[Any, ...]:
        kind, key = asked.names[0], "/".join(asked.names[1:])
        if kind == "token":
            return self._give_token(asked.body)
        credentials = asked.headers.get("Authorization")
        if self.token and credentials != f"Bearer {self.token}":
            return 401, {"message": f"bad {credentials}"}
        if self.read_only and asked.method != "GET":
            return 403, {"message": "you may only read"}
        held = self.objects.setdefault(kind, {})
        if len(asked.names) == 1:
            return self._create(held, asked.body) if asked.body else self._list(held, asked)
        found = held.get(key)
        wanted = asked.headers.get("If-Match")
        if asked.headers.get("If-None-Match") == "*" and found is not None:
            return 412, {"message": "it is there"}
        if wanted is not None and (found is None or _tag(found) != wanted):
            return 412, {"message": "it is another"}
        if asked.method == "PUT" and not self.ids:
            held[key] = asked.body
            return 200 if found else 201, held[key], self._tagged(held[key])
        if found is None:
            return 404, {"message": "not there"}
        if asked.method == "DELETE":
            del held[key]
            return 204, None
        if asked.method in ("PATCH", "PUT"):
            held[key] = {**(found if asked.method == "PATCH" else {}), **asked.body}
        return 200, held[key], self._tagged(held[key])

    def _give_token(self, form: dict[str, str]) -> tuple[Any, ...]:
        assert form["grant_type"] == "client_credentials"
        self.tokens_given += 1
        self.token = f"secret-token-{self.tokens_given}"
        return 200, {"access_token": self.token, "expires_in": 3600}

    def _create(self, held: dict[str, Any], data: dict[str, Any]) -> tuple[Any, ...]:
        self._number += 1
        id = str(self._number)
        held[id] = {**data, "id": id}
        return 201, held[id], self._tagged(held[id])

    def _list(self, held: dict[str, Any], asked: Asked) -> tuple[Any, ...]:
        query = asked.query
        found = [held[key] for key in sorted(held)]
        if "since" in query:
            found = [data for data in found if data.get("updated", "") >= query["since"]]
        size = int(query.get("per_page", 30))
        number = int(query.get("page", 1)) - 1
        first = int(query.get("cursor", 0)) if self.paging == "cursor" else number * size
        page, rest = found[first : first + size], found[first + size :]
        if self.paging != "link":
            cursor = str(first + size) if rest else None
            return 200, {"data": {"items": page}, "total": len(found), "next": cursor}
        headers = {}
        if rest:
            more = f"{self.url}{asked.path}?page={number + 2}&per_page={size}"
            headers["Link"] = f'<{more}>; rel="next", </x>; rel="last"'
        return 200, page, headers

    def _tagged(self, data: Any) -> dict[str, str]:
        return {"ETag": _tag(data)} if self.etags else {}


def _tag(data: Any) -> str:
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return f'"{digest[:16]}"'
