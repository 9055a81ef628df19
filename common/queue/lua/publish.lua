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
  if new ~= '-' then
    local position = redis.call('HGET', prefix .. 'cursor', file) or ''
    if position ~= expected then return { -1, position } end
  end
  local n, i = 0, 5
  while i <= #argv do
    local k = tonumber(argv[i + 2])
    n = n + k
    i = i + 3 + k
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
  local reply, published, ledgers = { 1, 0 }, 0, prefix .. 't:'
  i, n = 5, 0
  while i <= #argv do
    local id, stream, k = argv[i], keys[tonumber(argv[i + 1]) + 1], tonumber(argv[i + 2])
    if redis.call('HSETNX', ledgers .. id, 'st', 'open') == 1 then
      for s = 0, k - 1 do
        redis.call('XADD', stream, '*', 'id', id, 'u', 'r1-s' .. s, 'p', argv[i + 3 + s])
      end
      if k > 1 then redis.call('HSET', ledgers .. id, 'open', k, 'first', k) end
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

register('publish', publish, {})
