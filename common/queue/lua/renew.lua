-- renew: keep the leases this consumer still owns; tell it which it has lost.
--
-- KEYS  prefix, streams
-- ARGV  group, consumer, then per lease: stream index, entry, deliveries, task id
-- Reply per lease 1 (renewed), 2 (renewed, but a person cancelled the task: end it)
--       or 0 (lost: stop working on it)
local function renew(keys, argv)
  local reply, cancel = {}, keys[1] .. 'cancel'
  local cancelled = argv[1] == 'workers' and redis.call('EXISTS', cancel) == 1
  for i = 3, #argv, 4 do
    local stream = keys[tonumber(argv[i]) + 1]
    if owns(stream, argv[1], argv[2], argv[i + 1], argv[i + 2]) then
      redis.call('XCLAIM', stream, argv[1], argv[2], 0, argv[i + 1], 'JUSTID')
      local stop = cancelled and redis.call('SISMEMBER', cancel, argv[i + 3]) == 1
      reply[#reply + 1] = stop and 2 or 1
    else
      reply[#reply + 1] = 0
    end
  end
  return reply
end

register('renew', renew)
