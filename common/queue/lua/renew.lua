-- renew: keep the leases this consumer still owns; tell it which it has lost.
--
-- KEYS  prefix, streams
-- ARGV  group, consumer, then per lease: stream index, entry, deliveries
-- Reply per lease 1 (renewed) or 0 (lost: stop working on it)
local function renew(keys, argv)
  local reply = {}
  for i = 3, #argv, 3 do
    local stream = keys[tonumber(argv[i]) + 1]
    if owns(stream, argv[1], argv[2], argv[i + 1], argv[i + 2]) then
      redis.call('XCLAIM', stream, argv[1], argv[2], 0, argv[i + 1], 'JUSTID')
      reply[#reply + 1] = 1
    else
      reply[#reply + 1] = 0
    end
  end
  return reply
end

register('renew', renew)
