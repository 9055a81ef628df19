-- take: hand a consumer as many entries as it has free slots, the first stream's first.
--
-- KEYS  prefix, streams in the order to serve them
-- ARGV  group, consumer, count, ledger ttl (ms), stage
-- Reply { {stream index, entry, deliveries, task id, unit, payload}…, then as last element
--         {last generated id of each stream} to wait on when less than asked for came }
--
-- Work that a draining consumer handed back goes first: its delivery does not count. A paused
-- scene hands out no work; what a person cancelled ends here, if it was not found before.
local function take(keys, argv)
  local prefix, group, consumer, want = keys[1], argv[1], argv[2], tonumber(argv[3])
  local asked, reply, last, ended = want, {}, {}, {}
  local work = argv[5] == 'work'
  local paused = work and redis.call('HEXISTS', prefix .. 'control', 'paused') == 1
  local cancelled = work and redis.call('EXISTS', prefix .. 'cancel') == 1

  local function hand(s, entry, deliveries, f)
    if cancelled and redis.call('SISMEMBER', prefix .. 'cancel', f[2]) == 1 then
      drop(keys[s], group, entry)
      cancel_unit(prefix, f[2], f[4], argv[4])
      ended[s] = true -- it stood in the place of one that waits
    else
      reply[#reply + 1] = { s - 1, entry, deliveries, f[2], f[4], f[6] }
      want = want - 1
    end
  end

  for s = 2, #keys do
    local stream = keys[s]
    if want > 0 and not paused then
      local handed = redis.pcall('XPENDING', stream, group, '-', '+', want, RELEASED)
      if handed.err then
        -- No such stream or group: a new scene, or a server that was flushed.
        redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
        handed = {}
      end
      for _, row in ipairs(handed) do
        local got = redis.call('XCLAIM', stream, group, consumer, 0, row[1])
        if #got == 1 then hand(s, row[1], row[4] + 1, got[1][2]) end
      end
    end
    if want > 0 and not paused then
      local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', want,
        'STREAMS', stream, '>')
      if read then
        for _, row in ipairs(read[1][2]) do hand(s, row[1], 1, row[2]) end
      end
    end
  end
  for s = 2, #keys do
    last[s - 1] = '0-0'
    if #reply < asked and not ended[s] then
      local info = redis.pcall('XINFO', 'STREAM', keys[s])
      for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then last[s - 1] = info[i + 1] end
      end
    end
  end
  reply[#reply + 1] = last
  return reply
end

register('take', take)
