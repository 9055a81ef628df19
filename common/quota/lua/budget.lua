-- budget: change one budget.
--
-- KEYS  prefix
-- ARGV  scope, then field, value pairs: usd_limit or tok_limit with a whole number, or '' to take the
--       limit away; spent with 0 to count from nothing again
-- Reply the budget as it was before, as a flat list of its hash
local function change(keys, argv)
  local key = keys[1] .. 'b:' .. argv[1]
  local before = redis.call('HGETALL', key)
  incarnation(keys[1])
  redis.call('SADD', keys[1] .. 'scopes', argv[1])
  for i = 2, #argv, 2 do
    if argv[i] == 'spent' then
      redis.call('HSET', key, 'usd_spent', 0, 'tok_spent', 0, 'calls', 0)
    elseif argv[i + 1] == '' then
      redis.call('HDEL', key, argv[i])
    else
      redis.call('HSET', key, argv[i], argv[i + 1])
    end
  end
  return before
end

register('budget', change)
