-- settle: end leases on committed attempts with the reviewer's decision; fenced.
--
-- KEYS  prefix, events, hi, mid, lo
-- ARGV  consumer, ledger ttl (ms), then per lease twelve fields: entry, deliveries, task id, unit,
--       lease's attempt id, verdict (passed|failed|unverified), decision
--       (accepted|rejected|human|iterate|waiting), score ('' = none), record (JSON, for the
--       decision log), and
--         for `iterate` next lane (1-3), next payload (JSON), next unit
--         for `waiting` expiry (ms), wait (JSON), ids of its approvals (JSON)
--         else three times ""
-- Reply per lease 1, 2 or 0 as in commit

-- The unit waits for what people say (decide).
local function ask(prefix, id, unit, expiry, wait, approvals, ttl)
  local member = unit .. '|' .. id
  local key = prefix .. 'wait:' .. member
  -- Not from 1: who read a wait of another life of the task must not take this one for it.
  local version, before = now_ms(), redis.call('HGET', key, 'v')
  if before then
    end_wait(prefix, id, unit, 'lost', '', '', ttl)
    redis.call('DEL', key)
    version = math.max(version, before + 2)
  end
  redis.call('HSET', prefix .. 't:' .. id, 'u:' .. unit, 'waiting')
  redis.call('HSET', key, 'wait', wait, 'v', version, 'ids', approvals)
  for _, approval in ipairs(cjson.decode(approvals)) do
    redis.call('SET', prefix .. 'approval:' .. approval, member)
  end
  redis.call('ZADD', prefix .. 'waits', expiry, member)
  count(prefix, 'with_people')
end

local function settle(keys, argv)
  local prefix, events, consumer, ttl = keys[1], keys[2], argv[1], argv[2]
  local reply = {}
  for i = 3, #argv, 12 do
    local entry, deliveries, id, unit = argv[i], argv[i + 1], argv[i + 2], argv[i + 3]
    local token, verdict, decision = argv[i + 4], argv[i + 5], argv[i + 6]
    local score, record = argv[i + 7], argv[i + 8]
    local a, b, c = argv[i + 9], argv[i + 10], argv[i + 11]
    local ledger = prefix .. 't:' .. id
    if not owns(events, 'reviewers', consumer, entry, deliveries) then
      local before = redis.call('HGET', ledger, 'r:' .. unit) == token
      if not before then count(prefix, 'lost') end
      reply[#reply + 1] = before and 2 or 0
    else
      redis.call('HSET', ledger, 'r:' .. unit, token)
      if score ~= '' and tonumber(score) > tonumber(redis.call('HGET', ledger, 'score') or -1) then
        redis.call('HSET', ledger, 'score', score)
      end
      -- What would go on ends with a task that was cancelled meanwhile.
      local ends = decision ~= 'iterate' and decision ~= 'waiting'
      local cancelled = not ends and redis.call('SISMEMBER', prefix .. 'cancel', id) == 1
      log_decision(prefix, id, unit, cancelled and 'cancelled' or decision, record)
      count(prefix, 'reviewed')
      count(prefix, verdict)
      -- Retried results come from another distribution than first tries.
      local first = string.sub(unit, 1, 3) == 'r1-'
      if first and verdict ~= 'unverified' then count(prefix, verdict .. '_first') end
      if decision == 'accepted' then
        count(prefix, first and 'accepted_first' or 'accepted_retried')
      end
      if decision ~= 'waiting' then count(prefix, decision) end
      if ends or cancelled then
        end_unit(prefix, id, unit, ends and decision or 'cancelled', ttl)
      elseif decision == 'waiting' then
        ask(prefix, id, unit, a, b, c, ttl)
      else
        redis.call('HSET', ledger, 'u:' .. unit, 'iterated')
        redis.call('XADD', keys[tonumber(a) + 2], '*', 'id', id, 'u', c, 'p', b)
        count(prefix, 'units')
      end
      drop(events, 'reviewers', entry)
      reply[#reply + 1] = 1
    end
  end
  return reply
end

register('settle', settle)
