-- promote: move delayed work whose time has come into its stream.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  limit, ledger ttl (ms)
-- Reply number moved
local function promote(keys, argv)
  local prefix = keys[1]
  local due = redis.call('ZRANGE', prefix .. 'delayed', '-inf', now_ms(), 'BYSCORE',
    'LIMIT', 0, argv[1])
  for _, member in ipairs(due) do
    local lane, unit, id = member:match('^(%d)|([^|]+)|(.+)$')
    local ledger = prefix .. 't:' .. id
    local payload = redis.call('HGET', ledger, 'p:' .. unit)
    redis.call('ZREM', prefix .. 'delayed', member)
    if payload then
      redis.call('XADD', keys[tonumber(lane) + 1], '*', 'id', id, 'u', unit, 'p', payload)
      redis.call('HDEL', ledger, 'p:' .. unit)
      redis.call('HSET', ledger, 'u:' .. unit, 'queued')
    else
      -- Somebody removed the ledger. What is left is said, and cannot be run again.
      redis.call('XADD', prefix .. 'dead', '*', 'id', id, 'u', unit, 'stage', 'work',
        'lane', lane, 'reason', 'payload_lost', 'error', 'its ledger is gone', 'p', '',
        'deliveries', 0, 'history', '')
      count(prefix, 'dead')
      count(prefix, 'dead_work')
      if redis.call('HSETNX', ledger, 'st', 'dead') == 1 then
        redis.call('PEXPIRE', ledger, argv[2])
        count(prefix, 'tasks_dead')
      end
    end
  end
  return #due
end

register('promote', promote)
