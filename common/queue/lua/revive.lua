-- revive: run dead letters again, with fresh budgets of retries and deliveries.
--
-- KEYS  prefix, events, hi, mid, lo
-- ARGV  by, why, then ids of entries in the dead stream
-- Reply number revived; passed over are entries that are gone, and those whose task has begun a new
-- life since (its ledger had expired, and the same line was queued again)
local function revive(keys, argv)
  local prefix, revived = keys[1], 0
  for i = 3, #argv do
    local rows = redis.call('XRANGE', prefix .. 'dead', argv[i], argv[i])
    local f = {}
    if #rows == 1 then
      for j = 1, #rows[1][2], 2 do f[rows[1][2][j]] = rows[1][2][j + 1] end
    end
    local ledger = prefix .. 't:' .. (f.id or '')
    local state = f.id and redis.call('HGET', ledger, 'st')
    local unit = state and redis.call('HGET', ledger, 'u:' .. f.u)
    local ours = not state or unit == 'dead'
      or (not unit and redis.call('HEXISTS', ledger, 'revived') == 1)
    if f.p and f.p ~= '' and ours then
      if state and state ~= 'open' then count(prefix, 'tasks_' .. state, -1) end
      if not state then
        count(prefix, 'tasks')
        -- Its ledger has expired. Whichever of its letters come back are what it is made of now.
        redis.call('HSET', ledger, 'open', 0, 'revived', 1)
      end
      redis.call('HSET', ledger, 'st', 'open')
      if redis.call('HEXISTS', ledger, 'open') == 1 then
        redis.call('HINCRBY', ledger, 'open', 1)
        redis.call('HINCRBY', ledger, 'ended_dead', -1)
      end
      if f.stage == 'work' and string.sub(f.u, 1, 3) == 'r1-'
          and redis.call('HEXISTS', ledger, 'first') == 1 then
        redis.call('HINCRBY', ledger, 'first', 1) -- the others' events wait for it again
      end
      redis.call('HDEL', ledger, 'n:' .. f.u, 'w:' .. f.u, 'h:' .. f.u)
      redis.call('HSET', ledger, 'u:' .. f.u, f.stage == 'work' and 'queued' or 'review')
      redis.call('PERSIST', ledger)
      local stream = f.stage == 'work' and keys[tonumber(f.lane) + 2] or keys[2]
      redis.call('XADD', stream, '*', 'id', f.id, 'u', f.u, 'p', f.p)
      redis.call('XDEL', prefix .. 'dead', argv[i])
      count(prefix, 'dead', -1)
      count(prefix, f.stage == 'work' and 'dead_work' or 'dead_review', -1)
      audit(prefix, argv[1], 'dead.retry', f.id .. ' ' .. f.u, argv[2])
      revived = revived + 1
    end
  end
  return revived
end

register('revive', revive, {})
