-- release: hand entries back at once, as if they had never been delivered (drain).
--
-- KEYS  prefix, streams
-- ARGV  group, consumer, stage, ledger ttl (ms), then per lease: stream index, entry, deliveries
-- Reply per lease 1 (handed back) or 0 (was not ours any more)
--
-- Work that a person cancelled ends here: nobody may come to `take` it for a long time.
local function release(keys, argv)
  local prefix, reply = keys[1], {}
  local cancelled = argv[3] == 'work' and redis.call('EXISTS', prefix .. 'cancel') == 1
  for i = 5, #argv, 3 do
    local stream, entry, deliveries = keys[tonumber(argv[i]) + 1], argv[i + 1], argv[i + 2]
    if owns(stream, argv[1], argv[2], entry, deliveries) then
      local f = cancelled and entry_of(stream, entry)
      local stop = f and redis.call('SISMEMBER', prefix .. 'cancel', f.id) == 1
      if stop then
        drop(stream, argv[1], entry)
        cancel_unit(prefix, f.id, f.u, argv[4])
      else
        -- Owned by nobody, idle for a day, one delivery fewer: the next `take` finds it.
        redis.call('XCLAIM', stream, argv[1], RELEASED, 0, entry, 'IDLE', 86400000,
          'RETRYCOUNT', tonumber(deliveries) - 1, 'JUSTID')
        count(prefix, 'released')
      end
      reply[#reply + 1] = 1
    else
      reply[#reply + 1] = 0
    end
  end
  return reply
end

register('release', release)
