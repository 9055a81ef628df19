-- release: hand entries back at once, as if they had never been delivered (drain).
--
-- KEYS  prefix, streams
-- ARGV  group, consumer, then per lease: stream index, entry, deliveries
-- Reply per lease 1 (handed back) or 0 (was not ours any more)
local function release(keys, argv)
  local reply = {}
  for i = 3, #argv, 3 do
    local stream, entry, deliveries = keys[tonumber(argv[i]) + 1], argv[i + 1], argv[i + 2]
    if owns(stream, argv[1], argv[2], entry, deliveries) then
      -- Owned by nobody, idle for a day, one delivery fewer: the next `take` finds it.
      redis.call('XCLAIM', stream, argv[1], RELEASED, 0, entry, 'IDLE', 86400000,
        'RETRYCOUNT', tonumber(deliveries) - 1, 'JUSTID')
      count(keys[1], 'released')
      reply[#reply + 1] = 1
    else
      reply[#reply + 1] = 0
    end
  end
  return reply
end

register('release', release)
