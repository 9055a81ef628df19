-- The line of calls that wait for one provider, across all processes. Not a function of its own.

local LINE_TTL = 86400000 -- ms, after the last call that queued

-- Decide about one call: {'go', serial, taken, ticket}, a refusal, or nil with the reason to wait
-- ('tight', 'full' or ms).
local function try(ctx, id, p, who, account, tokens, nano, ticket)
  local no = objection(ctx, account, tokens, nano)
  if type(no) == 'table' then return no end
  if no then return nil, no end
  local wait = crowded(ctx, p, tokens)
  if wait then return nil, wait end
  reserve(ctx, who, account, tokens, nano)
  hold(ctx, 'h:' .. who, 's|' .. id, 1)
  local serial, taken = enter(p, tokens)
  return { 'go', serial, taken, ticket }
end

-- Tell a call's process: in the reply where it is the caller, else where it listens; there with
-- `need`, {account, tokens, nano-USD}: what it gives back if nobody ever reads it.
local function deliver(ctx, who, call, ruling, need)
  table.insert(ruling, 1, call)
  if who == ctx.who then
    ctx.rulings[#ctx.rulings + 1] = ruling
    return
  end
  if ruling[2] == 'go' then ruling[6] = need end
  local inbox = ctx.P .. 'in:' .. who
  redis.call('RPUSH', inbox, cjson.encode(ruling))
  redis.call('PEXPIRE', inbox, 60000)
end

local function queue_up(ctx, id, call, account, tokens, nano, ticket)
  local member, line = ctx.who .. '|' .. call, ctx.P .. 'q:' .. id .. ':' .. account
  redis.call('ZADD', line, 'NX', ticket, member) -- asked again after a lapse: keeps its place
  redis.call('HSET', ctx.P .. 'w:' .. id, member, cjson.encode({ tokens, nano }))
  redis.call('SADD', ctx.P .. 'a:' .. id, account)
  for _, key in ipairs({ line, ctx.P .. 'w:' .. id, ctx.P .. 'a:' .. id }) do
    redis.call('PEXPIRE', key, LINE_TTL)
  end
end

local function step_out(ctx, id, account, member)
  local line = ctx.P .. 'q:' .. id .. ':' .. account
  redis.call('ZREM', line, member)
  redis.call('HDEL', ctx.P .. 'w:' .. id, member)
  if redis.call('EXISTS', line) == 0 then redis.call('SREM', ctx.P .. 'a:' .. id, account) end
end

local function wait_at_most(ctx, ms)
  if ctx.wait < 0 or ms < ctx.wait then ctx.wait = ms end
end

-- The first in each account's line.
local function heads(ctx, id)
  local found = {}
  for _, account in ipairs(redis.call('SMEMBERS', ctx.P .. 'a:' .. id)) do
    found[account] = redis.call('ZRANGE', ctx.P .. 'q:' .. id .. ':' .. account, 0, 0, 'WITHSCORES')
  end
  return found
end

-- Let through whom there is room for, in the order of their tickets. An account whose budget is
-- spoken for by calls in flight is passed over: it must not hold up the others.
local function admit(ctx, id, p)
  p.full = 0
  local first = heads(ctx, id)
  while true do
    local account, head = nil, nil
    for name, row in pairs(first) do
      if row[1] and (not head or tonumber(row[2]) < tonumber(head[2])) then
        account, head = name, row
      end
    end
    if not head then return end
    local member = head[1]
    local who, call = string.match(member, '^(.*)|(%d+)$')
    local alive = who == ctx.who or redis.call('ZSCORE', ctx.P .. 'live', who)
    local row = alive and redis.call('HGET', ctx.P .. 'w:' .. id, member)
    local ruling, wait, need = nil, nil, nil
    if row then
      need = cjson.decode(row)
      ruling, wait = try(ctx, id, p, who, account, need[1], need[2], tonumber(head[2]))
    end
    if wait == 'tight' then
      first[account] = {}
      -- What frees the budget may be a call to another provider, which does not look here.
      wait_at_most(ctx, 500)
    elseif wait then
      if wait ~= 'full' then wait_at_most(ctx, wait) end
      return
    else
      if ruling then deliver(ctx, who, tonumber(call), ruling, { account, need[1], need[2] }) end
      step_out(ctx, id, account, member)
      first[account] =
        redis.call('ZRANGE', ctx.P .. 'q:' .. id .. ':' .. account, 0, 0, 'WITHSCORES')
    end
  end
end
