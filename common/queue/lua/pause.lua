-- pause: hand out no more work of a scene, or go on with it. What runs, runs to its end.
--
-- KEYS  prefix
-- ARGV  by, why, '1' to pause or '0' to go on
-- Reply 1 (changed) or 0 (it was so already)
local function pause(keys, argv)
  local prefix, on = keys[1], argv[3] == '1'
  local control = prefix .. 'control'
  if (redis.call('HEXISTS', control, 'paused') == 1) == on then return 0 end
  if on then
    redis.call('HSET', control, 'paused', argv[1], 'at', now_ms(), 'why', argv[2])
  else
    redis.call('DEL', control)
  end
  audit(prefix, argv[1], on and 'pause' or 'resume', '', argv[2])
  return 1
end

register('pause', pause)
