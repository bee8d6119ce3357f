"""The rights that a Redis user lacks for a store, as far as the server tells them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from eventsync.errors import EventSyncError
from eventsync.stores.redis.server import Server

__all__ = ["lacking"]

_SCRIPT: Final = """
local lacking = {}
for i = 1, #ARGV do
    local command = cjson.decode(ARGV[i])
    if not redis.acl_check_cmd(unpack(command)) then
        lacking[#lacking + 1] = ARGV[i]
    end
end
return lacking
"""


def lacking(server: Server, commands: Sequence[Sequence[str]]) -> list[list[str]] | None:
    """Return those of ``commands`` that this user may not run. Runs none of them.

    Returns ``None`` if the server does not tell it, as before Redis 7. Raises ``ConfigError`` if
    the user may not run scripts at all, which every write needs.
    """
    try:
        found = server.call("EVAL", _SCRIPT, 0, *(json.dumps(command) for command in commands))
    except EventSyncError as error:
        if "acl_check_cmd" in error.message:
            return None  # an older server, which knows no such function
        raise
    return [json.loads(text) for text in found]
