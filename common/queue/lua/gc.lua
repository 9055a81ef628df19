-- gc: forget consumers that own nothing and have been silent for long.
--
-- KEYS  prefix, streams
-- ARGV  group, idle (ms)
-- Reply number forgotten
local function gc(keys, argv)
  local gone = 0
  for s = 2, #keys do
    local consumers = redis.pcall('XINFO', 'CONSUMERS', keys[s], argv[1])
    if consumers.err then consumers = {} end
    for _, flat in ipairs(consumers) do
      local c = {}
      for i = 1, #flat, 2 do c[flat[i]] = flat[i + 1] end
      -- Deleting a consumer with pending entries would lose them.
      if c.pending == 0 and c.name ~= RELEASED and c.idle > tonumber(argv[2]) then
        redis.call('XGROUP', 'DELCONSUMER', keys[s], argv[1], c.name)
        gone = gone + 1
      end
    end
  end
  return gone
end

register('gc', gc)
