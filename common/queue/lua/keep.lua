-- keep: put a model's answer into the journal of a unit of work, before it is acted upon.
--
-- KEYS  journal (workers/journal.py), ledger of the task
-- ARGV  unit, request (sha256), answer, ttl (ms) of the whole journal from now on
-- Reply 1 (kept) or 0 (the unit has ended: whoever asked has lost its lease)
--
-- An answer belongs to its request, whoever asked; so it is not fenced by the lease, only kept from
-- outliving the unit. Goes through when memory is full, since work under way has to get to its
-- end; what a unit may keep is bounded by the caller.
local function keep(keys, argv)
  local state = redis.call('HGET', keys[2], 'u:' .. argv[1])
  if state and state ~= 'delayed' and state ~= 'queued' then return 0 end
  redis.call('HSET', keys[1], argv[2], argv[3])
  redis.call('PEXPIRE', keys[1], argv[4])
  return 1
end

register('keep', keep)
