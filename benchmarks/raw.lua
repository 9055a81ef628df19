#!lua name=bench_raw
-- raw_commit: the least a commit can be, for the limit the engine is held against (no ledger of
-- units, retries, dead letters, counters or repeated calls).
--
-- KEYS  stream, events
-- ARGV  group, consumer, ledger prefix, now (ms), then per job: entry, deliveries, task id, event
-- Reply number committed
redis.register_function('raw_commit', function(keys, argv)
  local group, consumer, prefix, now = argv[1], argv[2], argv[3], argv[4]
  local ids = {}
  for i = 5, #argv, 4 do
    local entry = argv[i]
    local row = redis.call('XPENDING', keys[1], group, entry, entry, 1)[1]
    if row and row[2] == consumer and row[4] == tonumber(argv[i + 1]) then
      redis.call('XADD', keys[2], '*', 'id', argv[i + 2], 'p', argv[i + 3])
      redis.call('HSET', prefix .. argv[i + 2], 'st', 'done', 'by', consumer, 'at', now)
      ids[#ids + 1] = entry
    end
  end
  redis.call('XACK', keys[1], group, unpack(ids))
  redis.call('XDEL', keys[1], unpack(ids))
  return #ids
end)
