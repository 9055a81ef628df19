-- exchange: everything one process has to say about its model calls, in one call.
--
-- KEYS  prefix
-- ARGV  process, number of this exchange (a repeat of the last one gets the same reply),
--       ttl (ms): without another exchange for so long, its slots are free and its reservations spent
--       JSON {"providers": {id: [rpm, tpm, first limit]},      every provider it uses or waits for
--             "free": [[provider, account, epoch, serial, verdict, estimated tokens,
--                       reserved nano-USD, real tokens, real nano-USD, tokens taken, asked (ms)]],
--                                                        verdict: ok | limited | failed
--             "drop": [[provider, account, call]],             waits no longer
--             "ask":  [[provider, account, call, tokens, nano-USD (-1: no price), ticket (0: new)]]}
--       the `born` it knows; '': none yet
-- Reply JSON {"epoch": of this process's registration; a new one: its waiting calls were forgotten,
--             "rulings": [[call, "go", serial, tokens taken, ticket]
--                         | [call, "over", scope, usd|tok, limit, spent, need]
--                         | [call, "unpriced", scope]],
--             "wait": ms until the first of them may go without another's doing; -1: unknown,
--             "providers": {id: [limit, in flight, paused for (ms)]}}
--       or {"born": …}, with nothing done, where that is not what the process knows: what it remembers
--       of budgets must be put back before anything is let through

-- ms. A process that is silent for longer settles its calls on top of what was counted for them.
local REMEMBERED = 3600000

-- What was let through while nobody listened any more was never sent.
local function unread(ctx, who)
  local amounts = {}
  local function add(what, by) amounts[what] = (amounts[what] or 0) + by end
  for _, row in ipairs(redis.call('LRANGE', ctx.P .. 'in:' .. who, 0, -1)) do
    local ruling = cjson.decode(row)
    local need = ruling[2] == 'go' and ruling[6]
    for _, scope in ipairs(need and scopes(need[1]) or {}) do
      add('t|' .. scope, need[2])
      add('u|' .. scope, math.max(0, need[3]))
    end
  end
  return amounts
end

local function lapsed_record(who, epoch) return 'l:' .. who .. '|' .. epoch end

-- What a process held that was killed, or cut off: its calls are assumed to have been paid for.
-- Saved at once, and forgotten only then: an exchange that fails must not lose it.
local function lapse(ctx, who)
  local mine, counted = 'h:' .. who, {}
  local unsent = unread(ctx, who)
  for what, amount in pairs(numbers(ctx.P .. mine, {})) do
    local kind, of = what:sub(1, 2), what:sub(3)
    if kind == 's|' then
      local p = provider(ctx, of)
      p.inflight = math.max(0, p.inflight - math.max(0, amount))
    elseif kind == 'u|' or kind == 't|' then
      local b, unit = budget(ctx, of), kind == 'u|' and 'usd' or 'tok'
      local sent = math.max(0, amount - (unsent[what] or 0))
      b[unit .. '_held'] = math.max(0, b[unit .. '_held'] - math.max(0, amount))
      b[unit .. '_spent'] = b[unit .. '_spent'] + sent
      b.changed = true
      if sent > 0 then counted[what] = sent end
    end
  end
  save(ctx)
  local epoch = redis.call('HGET', ctx.P .. mine, 'epoch')
  if epoch and next(counted) then
    local record = ctx.P .. lapsed_record(who, epoch)
    store(record, counted)
    redis.call('PEXPIRE', record, REMEMBERED)
  end
  redis.call('DEL', ctx.P .. mine, ctx.P .. 'in:' .. who)
  redis.call('ZREM', ctx.P .. 'live', who)
end

local function sign_in(ctx, ttl)
  local live, mine = ctx.P .. 'live', ctx.P .. 'h:' .. ctx.who
  for _, who in ipairs(redis.call('ZRANGEBYSCORE', live, '-inf', ctx.now, 'LIMIT', 0, 50)) do
    lapse(ctx, who)
  end
  redis.call('ZADD', live, ctx.now + ttl, ctx.who)
  local epoch = redis.call('HGET', mine, 'epoch')
  if not epoch then
    epoch = whole(ctx.micros)
    redis.call('HSET', mine, 'epoch', epoch)
  end
  return epoch
end

local function end_call(ctx, epoch, row)
  local id, account, of, serial, verdict, estimated, nano, tokens, real, taken, asked = unpack(row)
  local lapsed = of ~= epoch
  local record = lapsed and lapsed_record(ctx.who, of) or 'h:' .. ctx.who
  settle(ctx, record, lapsed, verdict, account, estimated, nano, tokens, real)
  local slots = -hold(ctx, record, 's|' .. id, -1)
  leave(ctx, provider(ctx, id), slots, serial, verdict, estimated, tokens, taken, asked)
end

local function exchange(keys, argv)
  local P, who, number, ttl = keys[1], argv[1], argv[2], tonumber(argv[3])
  local before, said = string.match(redis.call('GET', P .. 'r:' .. who) or '', '^(%d+) (.*)$')
  if before == number then return said end
  local born = incarnation(P)
  local known = argv[5] or ''
  if known ~= '' and known ~= born then return cjson.encode({ born = born }) end
  local batch, ctx = cjson.decode(argv[4]), open(P, who)
  local epoch = sign_in(ctx, ttl)
  for id, with in pairs(batch.providers) do provider(ctx, id, with[1], with[2], with[3]) end
  for _, row in ipairs(batch.free) do end_call(ctx, epoch, row) end
  for _, row in ipairs(batch.drop) do step_out(ctx, row[1], row[2], who .. '|' .. row[3]) end
  local lines = {}
  for _, row in ipairs(batch.ask) do
    local id, account, call, tokens, nano, ticket = unpack(row)
    local p, ruling = ctx.providers[id], nil
    if ticket == 0 then
      p.ticket = p.ticket + 1
      ticket = p.ticket
    end
    if lines[id] == nil then lines[id] = redis.call('EXISTS', P .. 'a:' .. id) == 1 end
    if not lines[id] then
      ruling = try(ctx, id, p, who, account, tokens, nano, ticket)
    else -- no use in queueing for a budget that is gone
      local no = objection(ctx, account, tokens, nano)
      if type(no) == 'table' then ruling = no end
    end
    if ruling then
      deliver(ctx, who, call, ruling)
    else
      queue_up(ctx, id, call, account, tokens, nano, ticket)
      lines[id] = true
    end
  end
  for id in pairs(batch.providers) do admit(ctx, id, ctx.providers[id]) end
  for _, row in ipairs(redis.call('LRANGE', P .. 'in:' .. who, 0, -1)) do
    local ruling = cjson.decode(row)
    if ruling[2] == 'go' then ruling[6] = nil end
    ctx.rulings[#ctx.rulings + 1] = ruling
  end
  redis.call('DEL', P .. 'in:' .. who)
  save(ctx)
  local limits = {}
  for id in pairs(batch.providers) do
    local p = ctx.providers[id]
    limits[id] = { p.limit, p.inflight, math.max(0, math.ceil(p.paused - ctx.now)) }
  end
  local reply = cjson.encode({
    born = born, epoch = epoch, rulings = ctx.rulings, wait = math.ceil(ctx.wait), providers = limits,
  })
  redis.call('SET', P .. 'r:' .. who, number .. ' ' .. reply, 'PX', 3600000)
  return reply
end

register('exchange', exchange)
