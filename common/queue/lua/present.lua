-- present: a process says that it is there.
--
-- KEYS  prefix of the whole fleet, "fleet:"
-- ARGV  process, seconds after which silent ones are not listed any more
-- Reply 1
local function present(keys, argv)
  local key, now = keys[1] .. 'processes', now_ms() / 1000
  redis.call('ZADD', key, now, argv[1])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - tonumber(argv[2]))
  return 1
end

register('present', present)
