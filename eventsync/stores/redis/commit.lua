-- One transaction of a store: data, versions and outbox, all or nothing.
--
-- The script decides nothing about records. It only checks that what the client read has not
-- changed. Versions are compared byte by byte: a Lua number cannot hold their digits, and '<' on
-- strings depends on the server's locale.
--
-- KEYS[1]: the hash of entries. KEYS[2..5]: the sorted sets of keys, by presence. KEYS[6]: the
-- outbox. Then the Redis keys of the records, in the order of the operations.
-- ARGV[1]: the header; ARGV[2]: the number of operations; ARGV[3..]: the operations; then the record
-- type and the body of each envelope in turn.
--
-- The header, the operations and the lists in them are framed: each part follows its length in 4
-- bytes.
-- Header: milliseconds until a record expires, or ''; the fields of a row, framed; then for each
-- index set the prefix of its name, and the hash that says in which set each record is.
-- Operation:
--   1  the record's key
--   2  '=': the stored entry must equal 3; '>': it must be older than the new one; '': no condition
--   3  the entry that was read, '' for none
--   4  the new entry; '-' to remove the entry; '' to leave it
--   5  the SHA-1 of the row that was read, '-' for no row; '' for no condition
--   6  'h' write a whole hash, 'u' write some fields, 'j' set a string, '-' remove, '' leave
--   7  fields and values to set, framed; or the string
--   8  fields to remove, framed
--   9  fields and values to set only in a new record, framed
--  10  for each index set the text of the record's value, '' for none, framed; '' to leave them
--
-- KEYS does not name the sets that a record leaves; they share the hash slot of KEYS[1].
--
-- Returns {0} if something has changed since it was read; {1, i, type} if the Redis key of operation
-- i has another type; else {2, i, entry, ...} with the stored entries that a '>' found not older, or
-- of the same version.
local function parts(blob)
  local found, at, size = {}, 1, #blob
  local n = 0
  while at <= size do
    n = n + 1
    found[n], at = struct.unpack('>I4c0', blob, at)
  end
  return found
end

local function order(a, b)
  local size, other = a:byte(2), b:byte(2)
  for i = 3, 2 + math.min(size, other) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then return x < y and -1 or 1 end
  end
  if size == other then return 0 end
  return size < other and -1 or 1
end

local header = parts(ARGV[1])
local life = header[1]
local fields = parts(header[2])
local count = tonumber(ARGV[2])

local function trace(key)
  if #fields == 0 then
    local text = redis.call('GET', key)
    return text and redis.sha1hex(text) or '-'
  end
  local any, texts = false, {}
  for i, value in ipairs(redis.call('HMGET', key, unpack(fields))) do
    if value then
      any = true
      texts[i] = #value .. ':' .. value
    else
      texts[i] = '-'
    end
  end
  return any and redis.sha1hex(table.concat(texts)) or '-'
end

-- Check everything first, because a script cannot undo what it has written.
local operations, met = {}, {2}
local changed, ours, written = false, true, 0
for i = 1, count do
  local op = parts(ARGV[2 + i])
  local key = KEYS[6 + i]
  operations[i] = op
  local now = redis.call('HGET', KEYS[1], op[1]) or ''
  op.now = now
  local new = op[4]
  if new ~= '' then
    written = written + 1
    if now ~= (new == '-' and '' or new) then ours = false end
  end
  if op[2] == '=' then
    if now ~= op[3] then changed = true end
  elseif op[2] == '>' and now ~= '' then
    local way = order(now, new)
    op.lost = way >= 0
    if op.lost or now:sub(3, 18) == new:sub(3, 18) then
      met[#met + 1] = i
      met[#met + 1] = now
    end
  end
  if not op.lost and (op[5] ~= '' or op[6] ~= '') then
    op.kind = redis.call('TYPE', key).ok
    if op.kind ~= 'none' and op.kind ~= (#fields == 0 and 'string' or 'hash') then
      return {1, i, op.kind}
    end
    if not changed and op[5] ~= '' and trace(key) ~= op[5] then changed = true end
  end
end
if changed then
  -- Unless this very call has been made before: its answer was lost, and the client repeats it.
  if ours and written > 0 and #ARGV > 2 + count then return {2} end
  return {0}
end

for i = 1, count do
  local op = operations[i]
  if not op.lost then
    local key, action = KEYS[6 + i], op[6]
    if action == '-' then
      redis.call('DEL', key)
    elseif action == 'j' then
      if life == '' then
        redis.call('SET', key, op[7], 'KEEPTTL')
      else
        redis.call('SET', key, op[7], 'PX', life)
      end
    elseif action ~= '' then
      if op[9] ~= '' and op.kind == 'none' then
        redis.call('HSET', key, unpack(parts(op[9])))
      end
      if op[7] ~= '' then redis.call('HSET', key, unpack(parts(op[7]))) end
      if op[8] ~= '' then redis.call('HDEL', key, unpack(parts(op[8]))) end
      if life ~= '' then redis.call('PEXPIRE', key, life) end
    end
    if op[10] ~= '' then
      for n, text in ipairs(parts(op[10])) do
        local prefix, sets = header[1 + 2 * n], header[2 + 2 * n]
        local before = redis.call('HGET', sets, op[1]) or ''
        if before ~= text then
          if before ~= '' then redis.call('SREM', prefix .. before, op[1]) end
          if text == '' then
            redis.call('HDEL', sets, op[1])
          else
            redis.call('HSET', sets, op[1], text)
            redis.call('SADD', prefix .. text, op[1])
          end
        end
      end
    end
    local new, was = op[4], op.now ~= '' and op.now:byte(1)
    if new == '-' then
      redis.call('HDEL', KEYS[1], op[1])
      if was then redis.call('ZREM', KEYS[1 + was], op[1]) end
    elseif new ~= '' then
      local is = new:byte(1)
      redis.call('HSET', KEYS[1], op[1], new)
      if was ~= is then
        if was then redis.call('ZREM', KEYS[1 + was], op[1]) end
        redis.call('ZADD', KEYS[1 + is], 0, op[1])
      end
    end
  end
end
for i = 3 + count, #ARGV, 2 do
  redis.call('XADD', KEYS[6], '*', 'type', ARGV[i], 'body', ARGV[i + 1])
end
return met
