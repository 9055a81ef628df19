-- take: hand a consumer as many entries as it has free slots, the first stream's first.
--
-- KEYS  prefix, streams in the order to serve them
-- ARGV  group, consumer, count
-- Reply { {stream index, entry, deliveries, task id, unit, payload}…, then as last element
--         {last generated id of each stream} to wait on when nothing came }
--
-- Work that a draining consumer handed back goes first: its delivery does not count.
local function take(keys, argv)
  local group, consumer, want = argv[1], argv[2], tonumber(argv[3])
  local reply, last = {}, {}
  for s = 2, #keys do
    local stream = keys[s]
    if want > 0 then
      local handed = redis.pcall('XPENDING', stream, group, '-', '+', want, RELEASED)
      if handed.err then
        -- No such stream or group: a new scene, or a server that was flushed.
        redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
        handed = {}
      end
      for _, row in ipairs(handed) do
        local got = redis.call('XCLAIM', stream, group, consumer, 0, row[1])
        if #got == 1 then
          local f = entry_of(stream, row[1])
          reply[#reply + 1] = { s - 1, row[1], row[4] + 1, f.id, f.u, f.p }
          want = want - 1
        end
      end
    end
    if want > 0 then
      local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', want,
        'STREAMS', stream, '>')
      if read then
        for _, row in ipairs(read[1][2]) do
          local f = {}
          for i = 1, #row[2], 2 do f[row[2][i]] = row[2][i + 1] end
          reply[#reply + 1] = { s - 1, row[1], 1, f.id, f.u, f.p }
          want = want - 1
        end
      end
    end
    last[s - 1] = '0-0'
    local info = redis.pcall('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last[s - 1] = info[i + 1] end
    end
  end
  reply[#reply + 1] = last
  return reply
end

register('take', take)
