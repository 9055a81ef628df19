-- revive: run dead letters again.
--
-- KEYS  prefix, events, hi, mid, lo
-- ARGV  ids of entries in the dead stream
-- Reply number revived; entries that are gone are passed over
local function revive(keys, argv)
  local prefix, revived = keys[1], 0
  for _, entry in ipairs(argv) do
    local f = entry_of(prefix .. 'dead', entry)
    if f and f.p ~= '' then
      local ledger = prefix .. 't:' .. f.id
      local state = redis.call('HGET', ledger, 'st')
      if state and state ~= 'open' then count(prefix, 'tasks_' .. state, -1) end
      if not state then count(prefix, 'tasks') end
      redis.call('HSET', ledger, 'st', 'open', 'u:' .. f.u, f.stage == 'work' and 'queued' or 'review')
      redis.call('HINCRBY', ledger, 'open', 1)
      redis.call('HINCRBY', ledger, 'ended_dead', -1)
      redis.call('HDEL', ledger, 'n:' .. f.u, 'k:' .. f.u)
      redis.call('PERSIST', ledger)
      local stream = f.stage == 'work' and keys[tonumber(f.lane) + 2] or keys[2]
      redis.call('XADD', stream, '*', 'id', f.id, 'u', f.u, 'p', f.p)
      redis.call('XDEL', prefix .. 'dead', entry)
      count(prefix, 'dead', -1)
      count(prefix, f.stage == 'work' and 'dead_work' or 'dead_review', -1)
      revived = revived + 1
    end
  end
  return revived
end

register('revive', revive)
