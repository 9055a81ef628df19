-- restore: put a budget back that the server has forgotten, unless somebody else was faster.
--
-- KEYS  prefix
-- ARGV  scope, then field, value pairs of its hash
-- Reply 1 (restored) or 0 (it is there)
local function restore(keys, argv)
  if redis.call('SADD', keys[1] .. 'scopes', argv[1]) == 0 then return 0 end
  redis.call('HSET', keys[1] .. 'b:' .. argv[1], unpack(argv, 2))
  return 1
end

register('restore', restore)
