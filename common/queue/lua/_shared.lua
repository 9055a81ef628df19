-- Helpers of every function in the library. Not a function of its own.
--
-- Everything a scene owns hangs on one prefix P = "fleet:{tasks:<scene>}:", which shares its
-- Cluster slot with the streams, so each call below is atomic on a cluster too.
--
--   P .. "t:<task_id>"  ledger hash. What is absent is as it was when the task was queued.
--                       st         open|accepted|rejected|human|cancelled|dead
--                       open       units not ended (absent: one)
--                       score      best review score
--                       u:<unit>   queued|delayed|review|waiting|iterated|accepted|rejected|
--                                  human|cancelled|dead (absent: queued for the first time, or
--                                  running)
--                       first      of several samples, first tries (r1-…) that have not ended;
--                                  absent once all have
--                       e:<unit>   event of a first try that has, held back until all have
--                       revived    its ledger had expired, and dead letters brought it back
--                       k:<unit>   attempt id of the lease that last committed it
--                       r:<unit>   the same for its review
--                       n:<unit>   explicit retries; w:<unit> those that only waited for a limit
--                       p:<unit>   payload, only while delayed
--                       h:<unit>   what broke it so far, a line each
--   P .. "stats"        hash of counters; changed in the same call as what they count
--   P .. "delayed"      zset "<lane>|<unit>|<task_id>" -> due, ms
--   P .. "events"       stream of committed attempts, group "reviewers"
--   P .. "dead"         stream of dead letters
--   P .. "decisions"    stream of what reviews and people decided, append-only, about the last
--                       100,000
--   P .. "waits"        zset "<unit>|<task_id>" of units that wait for people -> expiry, ms
--   P .. "wait:<unit>|<task_id>"  hash of such a unit. It outlives the waiting by the ledger's ttl
--                       wait   what people decide on, and said (JSON, common/approvals.py Wait)
--                       v      version: another after every change
--                       ids    ids of its approvals (JSON)
--                       last   token of the call that changed it last
--                       over   decided|cancelled|lost, once it waits no more; and by, why, at (ms)
--   P .. "approval:<id>"  the wait it belongs to: "<unit>|<task_id>"
--   P .. "control"      hash: paused (by whom), at (ms), why
--   P .. "cancel"       set of open tasks a person asked to stop
--   P .. "audit"        stream of what people did, about the last 100,000
--   P .. "j:<task_id>:<unit>"  model answers of the attempt under way (workers/journal.py)
--   stream entries      id (task), u (unit such as r1-s0), p (payload, JSON), in this order

local RELEASED = '@released'

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function count(prefix, name, by)
  redis.call('HINCRBY', prefix .. 'stats', name, by or 1)
end

-- The fields id, u, p of an entry; nil when the entry is gone.
local function entry_of(stream, entry)
  local rows = redis.call('XRANGE', stream, entry, entry)
  if #rows == 0 then return nil end
  local f = rows[1][2]
  return { id = f[2], u = f[4], p = f[6] }
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

-- One first try has ended; `event` where it committed an attempt. Those of a task with several
-- samples are reviewed together: their events go out once all have ended, in the samples' order.
local function leave_group(prefix, id, unit, event)
  local ledger, events = prefix .. 't:' .. id, prefix .. 'events'
  local first = string.sub(unit, 1, 3) == 'r1-' and redis.call('HGET', ledger, 'first')
  if not first or redis.call('HEXISTS', ledger, 'e:' .. unit) == 1 then
    if event then redis.call('XADD', events, '*', 'id', id, 'u', unit, 'p', event) end
    return
  end
  if event then
    redis.call('HSET', ledger, 'e:' .. unit, event)
    count(prefix, 'held')
  end
  if redis.call('HINCRBY', ledger, 'first', -1) > 0 then return end
  local fields = {}
  for _, field in ipairs(redis.call('HKEYS', ledger)) do
    if string.sub(field, 1, 2) == 'e:' then fields[#fields + 1] = field end
  end
  local function sample(field) return tonumber(string.match(field, '%d+$')) or 0 end
  table.sort(fields, function(a, b) return sample(a) < sample(b) end)
  for _, field in ipairs(fields) do
    redis.call('XADD', events, '*', 'id', id, 'u', string.sub(field, 3), 'p',
      redis.call('HGET', ledger, field))
  end
  if #fields > 0 then count(prefix, 'held', -#fields) end
  redis.call('HDEL', ledger, 'first', unpack(fields))
end

-- Tell what was decided; audit.py copies it into files.
local function log_decision(prefix, id, unit, decision, record)
  redis.call('XADD', prefix .. 'decisions', 'MAXLEN', '~', 100000, '*', 'id', id, 'u', unit,
    'decision', decision, 'p', record)
end

-- A unit waits for people no longer. What was asked is remembered for words that come late.
local function end_wait(prefix, id, unit, over, by, why, ttl)
  local member = unit .. '|' .. id
  local wait = prefix .. 'wait:' .. member
  if redis.call('ZREM', prefix .. 'waits', member) == 1 then count(prefix, 'with_people', -1) end
  for _, approval in ipairs(cjson.decode(redis.call('HGET', wait, 'ids') or '[]')) do
    redis.call('PEXPIRE', prefix .. 'approval:' .. approval, ttl)
  end
  redis.call('HINCRBY', wait, 'v', 1)
  redis.call('HSET', wait, 'over', over, 'by', by, 'why', why, 'at', now_ms())
  redis.call('PEXPIRE', wait, ttl)
end

local function forget_journal(prefix, id, unit)
  redis.call('UNLINK', prefix .. 'j:' .. id .. ':' .. unit)
end

-- A unit of a task has come to its end; the task ends with its last unit.
local function end_unit(prefix, id, unit, outcome, ttl)
  local ledger = prefix .. 't:' .. id
  redis.call('HSET', ledger, 'u:' .. unit, outcome)
  local open = redis.call('HGET', ledger, 'open')
  if open then
    redis.call('HINCRBY', ledger, 'ended_' .. outcome, 1)
    if redis.call('HINCRBY', ledger, 'open', -1) > 0 then return end
    for _, candidate in ipairs({ 'accepted', 'human', 'rejected', 'cancelled', 'dead' }) do
      if tonumber(redis.call('HGET', ledger, 'ended_' .. candidate) or 0) > 0 then
        outcome = candidate
        break
      end
    end
  end
  redis.call('HSET', ledger, 'st', outcome)
  redis.call('PEXPIRE', ledger, ttl)
  redis.call('SREM', prefix .. 'cancel', id)
  count(prefix, 'tasks_' .. outcome)
end

-- Remember what broke a unit, for the dead letter it may become.
local function note(ledger, unit, line)
  local before = redis.call('HGET', ledger, 'h:' .. unit)
  local text = (before and before .. '\n' or '') .. string.sub(line, 1, 500)
  redis.call('HSET', ledger, 'h:' .. unit, string.sub(text, -4000))
end

-- Put a unit where a person can find it, with all it takes to run it again.
local function bury(prefix, id, unit, stage, lane, reason, err, payload, deliveries, ttl)
  local history = redis.call('HGET', prefix .. 't:' .. id, 'h:' .. unit) or ''
  redis.call('XADD', prefix .. 'dead', '*', 'id', id, 'u', unit, 'stage', stage, 'lane', lane,
    'reason', reason, 'error', err, 'p', payload, 'deliveries', deliveries, 'history', history)
  count(prefix, 'dead')
  count(prefix, stage == 'work' and 'dead_work' or 'dead_review')
  if stage == 'work' then leave_group(prefix, id, unit) end
  end_unit(prefix, id, unit, 'dead', ttl)
end

-- A person asked for it: the unit ends before it could commit.
local function cancel_unit(prefix, id, unit, ttl)
  count(prefix, 'cancelled')
  forget_journal(prefix, id, unit)
  leave_group(prefix, id, unit)
  end_unit(prefix, id, unit, 'cancelled', ttl)
end

local function audit(prefix, by, action, target, detail)
  redis.call('XADD', prefix .. 'audit', 'MAXLEN', '~', 100000, '*', 'by', by, 'action', action,
    'target', target, 'detail', detail)
end

-- A server whose memory is full refuses what adds work; what ends work must always go through,
-- or the fleet could never free it again.
local function register(name, callback, flags)
  redis.register_function{
    function_name = name .. '_@VERSION@', callback = callback, flags = flags or { 'allow-oom' },
  }
end
