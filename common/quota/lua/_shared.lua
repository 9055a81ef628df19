-- Helpers of every function in this library. Not a function of its own.
--
-- All keys hang on one prefix P = "fleet:{quota}:" and share a Cluster slot, so each call is atomic.
-- A process is one incarnation of a worker or reviewer; a provider is one key at one provider (a
-- short hash, the key itself never comes here); an account is a scene, or '' for none.
--
--   P.."live"             zset process -> when what it holds lapses, ms
--   P.."h:<process>"      hash: epoch (of this registration), and what it holds:
--                         s|<provider> calls in flight, u|<scope> nano-USD, t|<scope> tokens
--   P.."l:<process>|<epoch>"  hash, for an hour: what of that was counted as spent when it lapsed
--   P.."r:<process>"      string "<number> <reply>" of its last exchange, to answer a repeat
--   P.."in:<process>"     list of rulings on its waiting calls that others' exchanges made
--   P.."p:<provider>"     hash: the state of its limits, see _limit.lua
--   P.."a:<provider>"     set of accounts that have calls waiting
--   P.."q:<provider>:<account>"  zset "<process>|<call>" -> ticket: first come, first served
--   P.."w:<provider>"     hash "<process>|<call>" -> what it needs, JSON [tokens, nano-USD]
--   P.."scopes"           set of scopes that have a budget or have spent
--   P.."b:<scope>"        hash: a budget, see _budget.lua; scope: run, or scene:<scene>
--   P.."born"            string: when this memory began, microseconds; another one: all was forgotten
--
-- State is read once per call into a table `ctx`, changed there, and written back by `save`.

local FORGET = 7 * 86400000 -- ms; a provider that nobody has used for so long starts afresh

-- Whole numbers beyond 1e14 would be written as 1e+15.
local function whole(n) return string.format('%.0f', n) end

-- What tells this memory from one that a flush or a restart took away: whoever comes first says it.
local function incarnation(P)
  local born = redis.call('GET', P .. 'born')
  if born then return born end
  local t = redis.call('TIME')
  born = whole(t[1] * 1000000 + t[2])
  redis.call('SET', P .. 'born', born)
  return born
end

local function open(P, who)
  local t = redis.call('TIME')
  local micros = t[1] * 1000000 + t[2]
  return {
    P = P, who = who, micros = micros, now = math.floor(micros / 1000),
    providers = {}, budgets = {}, holds = {}, rulings = {}, wait = -1,
  }
end

-- A hash as a table of numbers over `start`; words stay words.
local function numbers(key, start)
  local flat, found = redis.call('HGETALL', key), {}
  for name, value in pairs(start) do found[name] = value end
  for i = 1, #flat, 2 do found[flat[i]] = tonumber(flat[i + 1]) or flat[i + 1] end
  return found
end

-- Change how much of `what` the hash `record` holds, written back by `save`; returns the change. No
-- more is taken than is there: of what a fail-over forgot, others must not lose what is theirs.
local function hold(ctx, record, what, by)
  local held = ctx.holds[record]
  if not held then
    held = { has = numbers(ctx.P .. record, {}), changed = {} }
    ctx.holds[record] = held
  end
  local before = held.has[what] or 0
  local after = math.max(0, before + by)
  if after ~= before then held.has[what], held.changed[what] = after, after end
  return after - before
end

local function store(key, fields)
  local flat = {}
  for name, value in pairs(fields) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', key, unpack(flat))
end

local function save(ctx)
  for id, p in pairs(ctx.providers) do
    store(ctx.P .. 'p:' .. id, p)
    redis.call('PEXPIRE', ctx.P .. 'p:' .. id, FORGET)
  end
  for scope, b in pairs(ctx.budgets) do
    if b.changed then
      b.changed = nil
      redis.call('SADD', ctx.P .. 'scopes', scope)
      store(ctx.P .. 'b:' .. scope, b)
    end
  end
  for record, held in pairs(ctx.holds) do
    if next(held.changed) then store(ctx.P .. record, held.changed) end
  end
end

-- Episodes under way must get to their end when memory is full, or none would ever free any.
local function register(name, callback)
  redis.register_function{
    function_name = name .. '_@VERSION@', callback = callback, flags = { 'allow-oom' },
  }
end
