-- budgets: what is allowed, spent and reserved, of every scope.
--
-- KEYS  prefix
-- Reply when this memory began, then per scope: its name, and its hash as a flat list
local function budgets(keys)
  local reply = { incarnation(keys[1]) }
  for _, scope in ipairs(redis.call('SMEMBERS', keys[1] .. 'scopes')) do
    reply[#reply + 1] = { scope, redis.call('HGETALL', keys[1] .. 'b:' .. scope) }
  end
  return reply
end

register('budgets', budgets)
