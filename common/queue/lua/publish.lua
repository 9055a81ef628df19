-- publish: put a batch of lines and the new file position in, or nothing.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  file, expected position ('' = none yet), new position, max backlog,
--       then per task: task id, lane (1-3), samples k, payload x k
-- Reply {1, published, index of each duplicate…}   all is in, the position has moved
--       {-1, position}                             somebody else moved it: read from there
--       {-2, backlog}                              the scene is full: offer the batch again later
--
-- A repeated call finds its own position and changes nothing. Position '-' (with expected '-')
-- publishes without a file, as `fleet submit` does.
local function publish(keys, argv)
  local prefix, file, expected, new = keys[1], argv[1], argv[2], argv[3]
  local position = redis.call('HGET', prefix .. 'cursor', file) or ''
  if new ~= '-' and position ~= expected then return { -1, position } end
  local n, i = 0, 5
  while i <= #argv do
    n = n + tonumber(argv[i + 2])
    i = i + 3 + tonumber(argv[i + 2])
  end
  if n > 0 then
    local backlog = 0
    for lane = 2, 4 do
      backlog = backlog + redis.call('XLEN', keys[lane])
      local pending = redis.pcall('XPENDING', keys[lane], 'workers')
      if not pending.err then backlog = backlog - pending[1] end
    end
    if backlog > 0 and backlog + n > tonumber(argv[4]) then return { -2, backlog } end
  end
  local reply, now, published = { 1, 0 }, now_ms(), 0
  i, n = 5, 0
  while i <= #argv do
    local id, stream, k = argv[i], keys[tonumber(argv[i + 1]) + 1], tonumber(argv[i + 2])
    local ledger = prefix .. 't:' .. id
    if redis.call('HSETNX', ledger, 'st', 'open') == 1 then
      local row = { 'open', k, 'at', now }
      for s = 0, k - 1 do
        row[#row + 1] = 'u:r1-s' .. s
        row[#row + 1] = 'queued'
        redis.call('XADD', stream, '*', 'id', id, 'u', 'r1-s' .. s, 'p', argv[i + 3 + s])
      end
      redis.call('HSET', ledger, unpack(row))
      published = published + 1
      n = n + k
    else
      reply[#reply + 1] = (i - 5)
    end
    i = i + 3 + k
  end
  reply[2] = published
  if new ~= '-' then redis.call('HSET', prefix .. 'cursor', file, new) end
  if published > 0 then
    count(prefix, 'tasks', published)
    count(prefix, 'units', n)
  end
  return reply
end

register('publish', publish)
