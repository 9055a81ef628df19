-- commit: end leases on tasks, all that follows from each in the same call; fenced.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  consumer, ledger ttl (ms), max retries, then per lease eight fields:
--       lane, entry, deliveries, task id, unit, verb, and
--         done   attempt id,   event (JSON)   the attempt is in the store: tell the reviewers
--         retry  delay (ms),   error          infrastructure broke it: again later, up to max
--                                             retries; the delay doubles each time, up to 5 minutes
--         dead   reason,       error          running it again cannot help
-- Reply per lease 1 (committed), 2 (this very lease had committed before: a repeated call)
--       or 0 (lost: another consumer owns it; drop the result)
local function commit(keys, argv)
  local prefix, consumer, ttl, max = keys[1], argv[1], argv[2], tonumber(argv[3])
  local reply = {}
  for i = 4, #argv, 8 do
    local lane, entry, deliveries = argv[i], argv[i + 1], argv[i + 2]
    local id, unit, verb, a, b = argv[i + 3], argv[i + 4], argv[i + 5], argv[i + 6], argv[i + 7]
    local stream, ledger = keys[tonumber(lane) + 1], prefix .. 't:' .. id
    local token = consumer .. '/' .. entry .. '/' .. deliveries
    if not owns(stream, 'workers', consumer, entry, deliveries) then
      local before = redis.call('HGET', ledger, 'k:' .. unit) == token
      if not before then count(prefix, 'lost') end
      reply[#reply + 1] = before and 2 or 0
    else
      local payload = entry_of(stream, entry).p
      redis.call('HSET', ledger, 'k:' .. unit, token)
      if verb == 'done' then
        redis.call('XADD', prefix .. 'events', '*', 'id', id, 'u', unit, 'p', b)
        redis.call('HSET', ledger, 'u:' .. unit, 'review', 'c:' .. unit, a)
        redis.call('HINCRBY', ledger, 'att', 1)
        count(prefix, 'committed')
      elseif verb == 'retry' and redis.call('HINCRBY', ledger, 'n:' .. unit, 1) <= max then
        local before = tonumber(redis.call('HGET', ledger, 'n:' .. unit)) - 1
        local delay = math.max(tonumber(a), math.min(tonumber(a) * 2 ^ before, 300000))
        redis.call('HSET', ledger, 'u:' .. unit, 'delayed', 'p:' .. unit, payload)
        redis.call('ZADD', prefix .. 'delayed', now_ms() + delay, lane .. '|' .. unit .. '|' .. id)
        count(prefix, 'retried')
      else
        local reason = verb == 'retry' and 'retries_exhausted' or a
        bury(prefix, id, unit, 'work', lane, reason, b, payload, deliveries, ttl)
      end
      drop(stream, 'workers', entry)
      reply[#reply + 1] = 1
    end
  end
  return reply
end

register('commit', commit)
