-- Helpers of every function in the library. Not a function of its own.
--
-- Everything a scene owns hangs on one prefix P = "fleet:{tasks:<scene>}:", which shares its
-- Cluster slot with the streams, so each call below is atomic on a cluster too.
--
--   P .. "t:<task_id>"  ledger hash: st (open|accepted|rejected|human|dead), open (units not ended),
--                       at (published, ms), att (attempts committed), score (best),
--                       u:<unit> (queued|delayed|review|iterated|accepted|rejected|human|dead),
--                       k:<unit> (token of the lease that last committed it), c:<unit> (attempt id),
--                       n:<unit> (explicit retries), p:<unit> (payload, only while delayed)
--   P .. "stats"        hash of counters; changed in the same call as what they count
--   P .. "delayed"      zset "<lane>|<unit>|<task_id>" -> due, ms
--   P .. "events"       stream of committed attempts, group "reviewers"
--   P .. "dead"         stream of dead letters
--   P .. "decisions"    stream of review decisions, append-only, about the last 100,000
--   stream entries      id (task), u (unit such as r1-s0), p (payload, JSON)

local RELEASED = '@released'

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function count(prefix, name, by)
  redis.call('HINCRBY', prefix .. 'stats', name, by or 1)
end

-- The fields of an entry as a table; nil when the entry is gone.
local function entry_of(stream, entry)
  local rows = redis.call('XRANGE', stream, entry, entry)
  if #rows == 0 then return nil end
  local flat, fields = rows[1][2], {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- Is (entry, deliveries) still this consumer's? That pair is the fencing token.
local function owns(stream, group, consumer, entry, deliveries)
  local ok = redis.pcall('XPENDING', stream, group, entry, entry, 1)
  if ok.err or #ok == 0 then return false end
  return ok[1][2] == consumer and ok[1][4] == tonumber(deliveries)
end

local function drop(stream, group, entry)
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
end

-- A unit of a task has come to its end; the task ends with its last unit.
local function end_unit(prefix, id, unit, outcome, ttl)
  local ledger = prefix .. 't:' .. id
  redis.call('HSET', ledger, 'u:' .. unit, outcome)
  redis.call('HINCRBY', ledger, 'ended_' .. outcome, 1)
  if redis.call('HINCRBY', ledger, 'open', -1) > 0 then return end
  local state = 'dead'
  for _, candidate in ipairs({ 'accepted', 'human', 'rejected' }) do
    if tonumber(redis.call('HGET', ledger, 'ended_' .. candidate) or 0) > 0 then
      state = candidate
      break
    end
  end
  redis.call('HSET', ledger, 'st', state)
  redis.call('PEXPIRE', ledger, ttl)
  count(prefix, 'tasks_' .. state)
end

-- Put a unit where a person can find it, with all it takes to run it again.
local function bury(prefix, id, unit, stage, lane, reason, err, payload, deliveries, ttl)
  redis.call('XADD', prefix .. 'dead', '*', 'id', id, 'u', unit, 'stage', stage, 'lane', lane,
    'reason', reason, 'error', err, 'p', payload, 'deliveries', deliveries)
  count(prefix, 'dead')
  count(prefix, stage == 'work' and 'dead_work' or 'dead_review')
  end_unit(prefix, id, unit, 'dead', ttl)
end

local function register(name, callback)
  redis.register_function(name .. '_@VERSION@', callback)
end
