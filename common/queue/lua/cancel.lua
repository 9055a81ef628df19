-- cancel: end a task. What waits ends now, what runs is stopped by its worker's next heartbeat.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  by, why, ledger ttl (ms), task id, then per entry of the task a caller found waiting:
--       lane, entry
-- Reply {-1} (no such task), {0, state} (it had ended), {1, state, units ended by this call}
--
-- What people were to decide ends too, a row of the log each; a word that comes later is told so.
-- Called once without entries, which marks the task, and then with those found in the lanes.

-- What people were asked and had not decided: a row each in the log of decisions.
local function tell_asked(prefix, id, unit, by, why)
  local found = redis.call('HMGET', prefix .. 'wait:' .. unit .. '|' .. id, 'wait', 'ids')
  -- It may be of another release; that the task ends must not depend on it.
  local legible, wait = pcall(cjson.decode, found[1] or '')
  local asked = legible and type(wait) == 'table' and wait.approvals
  if type(asked) ~= 'table' then
    wait, asked = {}, {}
    for _, approval in ipairs(cjson.decode(found[2] or '[]')) do
      asked[#asked + 1] = { approval_id = approval }
    end
  end
  for _, one in ipairs(asked) do
    if type(one) == 'table' and (one.state or 'pending') == 'pending' then
      local proposal = type(one.proposal) == 'table' and one.proposal or {}
      log_decision(prefix, id, unit, 'cancel', cjson.encode({
        at = now_ms() / 1000, by = by, why = why, said = 'cancel', state = 'cancelled',
        approval_id = one.approval_id, attempt_id = wait.attempt_id, field = proposal.field,
        level = proposal.level,
      }))
    end
  end
end

local function cancel(keys, argv)
  local prefix, ttl, id = keys[1], argv[3], argv[4]
  local ledger, ended = prefix .. 't:' .. id, 0
  local state = redis.call('HGET', ledger, 'st')
  if not state then return { -1 } end
  if state ~= 'open' then return { 0, state } end
  if redis.call('SADD', prefix .. 'cancel', id) == 1 then
    audit(prefix, argv[1], 'cancel', id, argv[2])
  end
  local fields = redis.call('HKEYS', ledger)
  for _, field in ipairs(fields) do
    local asked = field:match('^u:(.+)$')
    if asked and redis.call('HGET', ledger, field) == 'waiting' then
      tell_asked(prefix, id, asked, argv[1], argv[2])
      end_wait(prefix, id, asked, 'cancelled', argv[1], argv[2], ttl)
      end_unit(prefix, id, asked, 'cancelled', ttl)
      ended = ended + 1
    end
    local unit = field:match('^p:(.+)$')
    if unit then
      for lane = 1, 3 do
        redis.call('ZREM', prefix .. 'delayed', lane .. '|' .. unit .. '|' .. id)
      end
      redis.call('HDEL', ledger, field)
      cancel_unit(prefix, id, unit, ttl)
      ended = ended + 1
    end
  end
  for i = 5, #argv, 2 do
    local stream, entry = keys[tonumber(argv[i]) + 1], argv[i + 1]
    local f = entry_of(stream, entry)
    local pending = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1)
    local owned = not pending.err and #pending == 1 and pending[1][2] ~= RELEASED
    if f and f.id == id and not owned then
      if not pending.err then redis.call('XACK', stream, 'workers', entry) end
      redis.call('XDEL', stream, entry)
      cancel_unit(prefix, id, f.u, ttl)
      ended = ended + 1
    end
  end
  return { 1, redis.call('HGET', ledger, 'st'), ended }
end

register('cancel', cancel)
