-- The data of several records, from one moment.
--
-- KEYS: the records. ARGV[1]: 'h' for hashes, 'j' for strings; the rest: the fields of a hash.
-- Returns for each record its values, or its string; nothing if it is not there; 0 if its key holds
-- something else.
local rows = {}
for i, key in ipairs(KEYS) do
  local row
  if ARGV[1] == 'h' then
    row = redis.pcall('HMGET', key, unpack(ARGV, 2))
  else
    row = redis.pcall('GET', key)
  end
  if type(row) == 'table' and row.err then
    row = 0
  elseif type(row) == 'table' then
    local any = false
    for _, value in ipairs(row) do
      if value then any = true break end
    end
    if not any then row = false end
  end
  rows[i] = row
end
return rows
