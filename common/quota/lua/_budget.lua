-- Budgets: reserved before a call, settled after it. Not a function of its own.
--
-- A budget is a hash of whole numbers: per unit (usd: nano-USD; tok: tokens)
--   <unit>_limit  absent: none        <unit>_spent  settled, or lapsed with a killed process
--   <unit>_held   reserved by calls in flight
--   <unit>_least  the smallest reservation a scene ever asked for: what is below it buys it nothing
-- and calls, the number of calls answered; restored 1: what was remembered of it before this memory
-- began has been added.

local EMPTY = { usd_spent = 0, usd_held = 0, tok_spent = 0, tok_held = 0, calls = 0 }
local UNITS = { { 'usd', 'u|' }, { 'tok', 't|' } }
local UNPRICED = -1

local function budget(ctx, scope)
  local b = ctx.budgets[scope]
  if not b then
    b = numbers(ctx.P .. 'b:' .. scope, EMPTY)
    ctx.budgets[scope] = b
  end
  return b
end

local function scopes(account)
  if account == '' then return { 'run' } end
  return { 'run', 'scene:' .. account }
end

-- May a call with these needs be made? nil: yes. 'tight': not before other calls are settled.
-- Else the ruling: {'over', scope, unit, limit, spent, need} or {'unpriced', scope}.
local function objection(ctx, account, tokens, nano)
  local tight = nil
  for _, scope in ipairs(scopes(account)) do
    local b = budget(ctx, scope)
    for _, unit in ipairs(UNITS) do
      local name = unit[1]
      local need = name == 'usd' and nano or tokens
      local limit = b[name .. '_limit']
      if limit and need == UNPRICED then return { 'unpriced', scope } end
      if need > 0 then
        -- Of no scene are a worker's first words to a model: far smaller than any real call.
        if account ~= '' and need < (b[name .. '_least'] or math.huge) then
          b[name .. '_least'], b.changed = need, true
        end
        local left = limit and limit - b[name .. '_spent'] or math.huge
        if need > left then
          return { 'over', scope, name, whole(limit), whole(b[name .. '_spent']), whole(need) }
        end
        if need > left - b[name .. '_held'] then tight = 'tight' end
      end
    end
  end
  return tight
end

local function reserve(ctx, who, account, tokens, nano)
  for _, scope in ipairs(scopes(account)) do
    local b = budget(ctx, scope)
    b.usd_held, b.tok_held = b.usd_held + math.max(0, nano), b.tok_held + tokens
    b.changed = true
    hold(ctx, 'h:' .. who, 'u|' .. scope, math.max(0, nano))
    hold(ctx, 'h:' .. who, 't|' .. scope, tokens)
  end
end

-- A call has cost what it has cost. `record` says what was reserved for it, and is held still or, if
-- `lapsed`, counted as spent meanwhile. For what the server forgot nothing is given back.
local function settle(ctx, record, lapsed, verdict, account, tokens, nano, real_tokens, real_nano)
  for _, scope in ipairs(scopes(account)) do
    local b, from = budget(ctx, scope), lapsed and '_spent' or '_held'
    local usd, tok = 'usd' .. from, 'tok' .. from
    b[usd] = b[usd] + hold(ctx, record, 'u|' .. scope, -math.max(0, nano))
    b[tok] = b[tok] + hold(ctx, record, 't|' .. scope, -tokens)
    b.usd_spent = math.max(0, b.usd_spent + math.max(0, real_nano))
    b.tok_spent = math.max(0, b.tok_spent + real_tokens)
    b.usd_held, b.tok_held = math.max(0, b.usd_held), math.max(0, b.tok_held)
    if verdict == 'ok' then b.calls = b.calls + 1 end
    b.changed = true
  end
end
