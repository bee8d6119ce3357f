-- The data of several records, read at one moment.
--
-- KEYS: the records. ARGV[1]: 'h' for hashes, 'j' for strings; then the fields of a hash.
-- Returns for each record its values, or its string; nil if it does not exist; 0 if its key has
-- another type.
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
