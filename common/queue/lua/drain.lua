-- drain: ask every process that runs now to drain and end.
--
-- KEYS  prefix of the whole fleet, "fleet:"
-- ARGV  by, why
-- Reply 1
--
-- The order is a row, {"at": server time (Unix seconds), "by", "why"}, which each process compares
-- with its own beginning; after a day nobody is left whom it could mean.
local function drain(keys, argv)
  local prefix = keys[1]
  local row = cjson.encode({ at = now_ms() / 1000, by = argv[1], why = argv[2] })
  redis.call('SET', prefix .. 'drain', row, 'EX', 86400)
  audit(prefix, argv[1], 'drain', '', argv[2])
  return 1
end

register('drain', drain)
