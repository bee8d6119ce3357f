"""The Lua scripts of the Redis transport. Each script is one atomic step on the server.

All keys have the same hash tag, so a cluster keeps all of them on one node. Therefore a script may
access the stream of any queue, even if the stream is not among the keys passed to the script.

A queue is a stream with one consumer group. The messages that a consumer has leased are in the
group's list of pending entries under the name of that consumer. Released messages are in that list
under the name ``RELEASED``, which no consumer uses. Released messages are older than all messages
that were never leased, so they are leased first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = [
    "ACKNOWLEDGE",
    "ALTER",
    "BEAT",
    "GROUP",
    "LEASE",
    "LEAVE",
    "LIFE",
    "LOAD",
    "MOVE",
    "PURGE",
    "RELEASE",
    "RELEASED",
    "STATE",
    "STORE",
    "TAKE_OVER",
    "Script",
]

GROUP = "eventsync"
RELEASED = "released"


@dataclass(frozen=True)
class Script:
    """A Lua script, and the SHA-1 digest that identifies the script in EVALSHA."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode()).hexdigest())


_SHARED = f"""
local GROUP, RELEASED = '{GROUP}', '{RELEASED}'
local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- A server whose memory is full refuses commands that need memory, unless the script has already
-- written something. This write therefore allows consumers to remove messages.
local function despite_full_memory(consumers)
  redis.call('ZREM', consumers, '')
end
local function expire_in(consumers, consumer, ttl)
  redis.call('ZADD', consumers, string.format('%.0f', milliseconds() + ttl), consumer)
end
-- Return the reply of a command, or nil if the stream or its consumer group does not exist.
local function unless_no_group(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, 'NOGROUP', 1, true) or string.find(reply.err, 'no such key', 1, true)
    then return nil end
    error(reply.err, 0)
  end
  return reply
end
local function group_of(stream)
  for _, group in ipairs(unless_no_group('XINFO', 'GROUPS', stream) or {{}}) do
    local found = {{}}
    for i = 1, #group, 2 do found[group[i]] = group[i + 1] end
    if found.name == GROUP then return found end
  end
end
"""

_REMOVE = """
-- Remove messages; return their number. ARGV from `at`, for each stream: index of the stream in
-- KEYS, number of ids, ids.
local function remove(at)
  local removed = 0
  while at <= #ARGV do
    local stream, last = KEYS[tonumber(ARGV[at])], at + 1 + tonumber(ARGV[at + 1])
    for first = at + 2, last, 1000 do
      local upto = math.min(first + 999, last)
      redis.call('XACK', stream, GROUP, unpack(ARGV, first, upto))
      removed = removed + redis.call('XDEL', stream, unpack(ARGV, first, upto))
    end
    at = last + 1
  end
  return removed
end
"""

_RELEASE_ALL = """
-- Release all messages that a consumer has leased, and delete the consumer from the group. `clean`:
-- do not count these leases as deliveries.
local function release_all(stream, consumer, clean)
  local from = '-'
  while true do
    local held = unless_no_group('XPENDING', stream, GROUP, from, '+', 1000, consumer)
    if not held then return end
    if #held == 0 then break end
    local ids_of = {}
    for _, entry in ipairs(held) do
      local count = clean and math.max(entry[4] - 1, 0) or entry[4]
      ids_of[count] = ids_of[count] or {}
      table.insert(ids_of[count], entry[1])
    end
    for count, ids in pairs(ids_of) do
      local command = {'XCLAIM', stream, GROUP, RELEASED, 0}
      for _, id in ipairs(ids) do command[#command + 1] = id end
      for _, word in ipairs({'RETRYCOUNT', count, 'JUSTID'}) do command[#command + 1] = word end
      redis.call(unpack(command))
    end
    from = '(' .. held[#held][1]
  end
  -- Checked, because deleting a consumer also deletes its pending entries.
  if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, consumer) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer)
  end
end
"""

#: Store messages. KEYS: epoch, streams. ARGV: the expected epoch, then for each message the indices
#: of its streams in KEYS, its labels, its body, and its headers with properties or an empty text.
#: Returns 1. Returns 0 and stores nothing if the epoch differs. The labels serve as the name of the
#: body's field, because a stream stores repeated field names only once.
STORE = Script(
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 4 do
  for index in string.gmatch(ARGV[i], '%d+') do
    local stream = KEYS[tonumber(index)]
    if ARGV[i + 3] == '' then
      redis.call('XADD', stream, '*', ARGV[i + 1], ARGV[i + 2])
    else
      redis.call('XADD', stream, '*', ARGV[i + 1], ARGV[i + 2], 'headers', ARGV[i + 3])
    end
  end
end
return 1
"""
)

#: Acknowledge messages, then lease ready messages. KEYS: consumers, queues, then the streams of the
#: queues to lease from, then other streams. ARGV: consumer, its time to live in ms, 1 if the
#: consumer is new, the largest number of messages, about the largest number of bytes, the largest
#: number of bytes of a message, the largest number of bytes of its headers, how many bytes of a
#: message that is too large are returned, the number of queues to lease from, the names of these
#: queues, then the messages to acknowledge as `remove` reads them. Returns {'gone'} if the consumer
#: is no longer registered, {'missing', queue} if a queue does not exist, else {'ok', last, parts of
#: each queue ...}. If no message is ready, `last` has the last delivered id of each queue; else it
#: is empty. A part is {counts, entries}: `counts` has the number of earlier leases of each entry,
#: or is empty if all numbers are 0. An entry is {id, fields}, or {id, fields, size} if the message
#: is too large; then its fields are cut.
LEASE = Script(
    _SHARED
    + _REMOVE
    + """
local consumers, me, queues = KEYS[1], ARGV[1], tonumber(ARGV[9])
local most_bytes, most_headers, kept = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local ttl, expiry = tonumber(ARGV[2]), redis.call('ZSCORE', consumers, me)
if ARGV[3] ~= '1' and not expiry then return {'gone'} end
for i = 1, queues do
  if redis.call('SISMEMBER', KEYS[2], ARGV[9 + i]) == 0 then return {'missing', ARGV[9 + i]} end
end
despite_full_memory(consumers)
-- Each write may wait for the disk. Therefore renew the time of expiry only if a fifth of the time
-- to live has passed; consumers renew it that often anyway.
if not expiry or expiry - milliseconds() < 0.8 * ttl then expire_in(consumers, me, ttl) end
remove(10 + queues)

local left, room, largest, taken = tonumber(ARGV[4]), tonumber(ARGV[5]), 1, 0
-- Return how many messages to read next: one at first, because their size is not known yet.
local function next_count(most)
  return math.max(0, math.min(most, 256, 3 * taken + 1, math.ceil(room / largest)))
end
local function add(into, counts, entries)
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    local size, around = #(fields[2] or ''), #(fields[1] or '')
    for i = 3, #fields do around = around + #fields[i] end
    size = size + around
    if size > most_bytes or around > most_headers or #fields > 6 then
      entry[2] = {string.sub(fields[1], 1, kept), string.sub(fields[2], 1, kept)}
      entry[3] = size
    end
    if size > largest then largest = size end
    room = room - size
  end
  left, taken = left - #entries, taken + #entries
  if #entries > 0 then into[#into + 1] = {counts, entries} end
  return #entries
end
local function lease_released(stream, into, share)
  while share > 0 and room > 0 do
    local count = next_count(share)
    local held = unless_no_group('XPENDING', stream, GROUP, '-', '+', count, RELEASED)
    if not held or #held == 0 then return share end
    local command, leases = {'XCLAIM', stream, GROUP, me, 0}, {}
    for _, entry in ipairs(held) do
      command[#command + 1] = entry[1]
      leases[entry[1]] = entry[4]
    end
    local counts, entries = {}, {}
    for _, entry in pairs(redis.call(unpack(command))) do
      if entry then
        entries[#entries + 1] = entry
        counts[#counts + 1] = leases[entry[1]]
        leases[entry[1]] = nil
      end
    end
    share = share - add(into, counts, entries)
    -- Remove pending entries whose messages another program has deleted from the stream.
    for id in pairs(leases) do redis.call('XACK', stream, GROUP, id) end
  end
  return share
end
local function lease_new(stream, into, share)
  while share > 0 and room > 0 do
    local count = next_count(share)
    local command = {'XREADGROUP', 'GROUP', GROUP, me, 'COUNT', count, 'STREAMS', stream, '>'}
    local reply = unless_no_group(unpack(command))
    if reply == nil then
      -- The group does not exist: nobody has leased yet, or it was removed. All messages are ready.
      redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
      reply = redis.call(unpack(command))
    end
    local got = add(into, {}, reply and reply[1] and reply[1][2] or {})
    share = share - got
    if got < count then return end
  end
end
local leased, last, any = {}, {}, false
for i = 1, queues do
  local into = {}
  local share = math.ceil(left / (queues - i + 1))
  lease_new(KEYS[2 + i], into, lease_released(KEYS[2 + i], into, share))
  leased[i] = into
  any = any or #into > 0
end
if not any then
  for i = 1, queues do
    last[i] = (group_of(KEYS[2 + i]) or {})['last-delivered-id'] or '0'
  end
end
return {'ok', last, unpack(leased)}
"""
)

#: Remove acknowledged messages. KEYS: consumers, streams. ARGV: consumer, then the messages in the
#: format of `remove`. Returns how many messages were removed.
ACKNOWLEDGE = Script(
    _SHARED
    + _REMOVE
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
return remove(2)
"""
)

#: Move messages to another queue. KEYS: consumers, queues, the stream of that queue, streams. ARGV:
#: consumer, the name of that queue, then for each stream of messages its index in KEYS, number of
#: ids, ids. Returns 0 if the queue does not exist, else 1.
MOVE = Script(
    _SHARED
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
if redis.call('SISMEMBER', KEYS[2], ARGV[2]) == 0 then return 0 end
local at = 3
while at <= #ARGV do
  local stream, last = KEYS[tonumber(ARGV[at])], at + 1 + tonumber(ARGV[at + 1])
  for i = at + 2, last do
    for _, entry in ipairs(redis.call('XRANGE', stream, ARGV[i], ARGV[i])) do
      -- Lua passes a limited number of arguments, so a message with very many fields loses some.
      local fields = {unpack(entry[2], 1, math.min(#entry[2], 2000))}
      if #fields == 2 then fields[3], fields[4] = 'headers', '' end
      fields[5], fields[6] = 'moved', '1'
      redis.call('XADD', KEYS[3], '*', unpack(fields))
    end
    redis.call('XACK', stream, GROUP, ARGV[i])
    redis.call('XDEL', stream, ARGV[i])
  end
  at = last + 1
end
return 1
"""
)

#: Release messages. KEYS: consumers, streams. ARGV: consumer, then for each group of messages index
#: of the stream in KEYS, the number of leases to record for each message, number of ids, ids.
RELEASE = Script(
    _SHARED
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return end
local at = 2
while at <= #ARGV do
  local last = at + 2 + tonumber(ARGV[at + 2])
  for first = at + 3, last, 1000 do
    local command = {'XCLAIM', KEYS[tonumber(ARGV[at])], GROUP, RELEASED, 0}
    for i = first, math.min(first + 999, last) do command[#command + 1] = ARGV[i] end
    for _, word in ipairs({'RETRYCOUNT', ARGV[at + 1], 'JUSTID'}) do
      command[#command + 1] = word
    end
    unless_no_group(unpack(command))
  end
  at = last + 1
end
"""
)

#: Renew the registration of consumers. KEYS: consumers. ARGV: time to live in ms, 1 to list all
#: consumers, the consumers to renew. Returns {server's time in ms, {those consumers to renew that
#: are no longer registered}, {consumer, time of expiry in ms, ...}}. The last list is empty unless
#: the second argument is 1.
BEAT = Script(
    _SHARED
    + """
local gone = {}
for i = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    despite_full_memory(KEYS[1])
    expire_in(KEYS[1], ARGV[i], tonumber(ARGV[1]))
  else
    gone[#gone + 1] = ARGV[i]
  end
end
local others = {}
if ARGV[2] == '1' then others = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES') end
return {string.format('%.0f', milliseconds()), gone, others}
"""
)

#: Release all messages of a dead consumer and unregister it. KEYS: consumers, queues. ARGV: the
#: prefix of the names of streams, the consumer, and its time of expiry when the caller found it
#: dead. Has no effect if the consumer has renewed its registration since then.
TAKE_OVER = Script(
    _SHARED
    + _RELEASE_ALL
    + """
if redis.call('ZSCORE', KEYS[1], ARGV[2]) ~= ARGV[3] then return end
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  release_all(ARGV[1] .. queue, ARGV[2], false)
end
redis.call('ZREM', KEYS[1], ARGV[2])
"""
)

#: Unregister consumers and release their messages. KEYS: consumers, queues. ARGV: the prefix of the
#: names of streams, then the consumers.
LEAVE = Script(
    _SHARED
    + _RELEASE_ALL
    + """
for i = 2, #ARGV do
  -- If the consumer is not registered, another consumer has already released its messages.
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    for _, queue in ipairs(redis.call('SMEMBERS', KEYS[2])) do
      release_all(ARGV[1] .. queue, ARGV[i], true)
    end
  end
end
"""
)

#: Return the server section of INFO. KEYS: any key of the transport; it selects the cluster node.
LIFE = Script("return redis.call('INFO', 'server')")

#: Return the state of a queue. KEYS: queues, stream. ARGV: queue. Returns nil if the queue does not
#: exist, else {number of ready messages, number of leased messages, id of the oldest message or '',
#: server's time in ms}.
STATE = Script(
    _SHARED
    + """
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then return false end
local leased = 0
local pending = unless_no_group('XPENDING', KEYS[2], GROUP)
for _, consumer in ipairs(pending and pending[4] or {}) do
  if consumer[1] ~= RELEASED then leased = leased + tonumber(consumer[2]) end
end
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
return {
  math.max(0, redis.call('XLEN', KEYS[2]) - leased), leased, first and first[1] or '',
  string.format('%.0f', milliseconds())
}
"""
)

#: Remove ready messages: all of them if no message is leased, else a limited number. KEYS: stream.
#: ARGV: the last id to remove. Returns {number of removed messages, 1 if more may remain, else 0}.
PURGE = Script(
    _SHARED
    + """
local stream, removed = KEYS[1], 0
while true do
  local held = unless_no_group('XPENDING', stream, GROUP, '-', ARGV[1], 1000, RELEASED) or {}
  if #held == 0 then break end
  local ids = {}
  for i, entry in ipairs(held) do ids[i] = entry[1] end
  redis.call('XACK', stream, GROUP, unpack(ids))
  removed = removed + redis.call('XDEL', stream, unpack(ids))
end
local pending = unless_no_group('XPENDING', stream, GROUP)
if not pending or pending[1] == 0 then
  return {removed + redis.call('XTRIM', stream, 'MAXLEN', 0), 0}
end
local from = '(' .. group_of(stream)['last-delivered-id']
local ids = {}
for i, entry in ipairs(redis.call('XRANGE', stream, from, ARGV[1], 'COUNT', 50)) do
  ids[i] = entry[1]
end
if #ids > 0 then removed = removed + redis.call('XDEL', stream, unpack(ids)) end
return {removed, #ids == 50 and 1 or 0}
"""
)

#: Return the routing. KEYS: epoch, queues, exchanges, bindings. Returns the values of these keys in
#: this order.
LOAD = Script(
    """
if redis.call('EXISTS', KEYS[1]) == 0 then
  -- A publisher may remember the epoch of an earlier routing on this server. An epoch made from the
  -- server's time differs from all of these.
  local time = redis.call('TIME')
  redis.call('SET', KEYS[1], time[1] .. string.format('%06d', time[2]))
end
return {
  redis.call('GET', KEYS[1]), redis.call('SMEMBERS', KEYS[2]), redis.call('HGETALL', KEYS[3]),
  redis.call('HGETALL', KEYS[4])
}
"""
)

#: Change the routing. KEYS: epoch, and the keys to change. ARGV: the expected epoch, then Redis
#: commands, each preceded by the number of its words. Returns 1. Returns 0 and does nothing if the
#: epoch differs.
ALTER = Script(
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 2
while at <= #ARGV do
  local last = at + tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, last))
  at = last + 1
end
-- The new epoch was never used before, even if the server has lost some epochs in a failover.
local time = redis.call('TIME')
local now = tonumber(time[1] .. string.format('%06d', time[2]))
redis.call('SET', KEYS[1], string.format('%.0f', math.max(tonumber(ARGV[1]) + 1, now)))
return 1
"""
)
