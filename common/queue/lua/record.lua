-- record: note what a person did to the whole fleet, on a server whose memory is full too.
--
-- KEYS  prefix of the whole fleet, "fleet:"
-- ARGV  by, action, target, detail
-- Reply 1
local function record(keys, argv)
  audit(keys[1], argv[1], argv[2], argv[3], argv[4])
  return 1
end

register('record', record)
