-- recall: the answers earlier attempts at a unit of work have paid for.
--
-- KEYS  journal (workers/journal.py)
-- ARGV  none
-- Reply request, answer, request, answer, …
local function recall(keys)
  return redis.call('HGETALL', keys[1])
end

register('recall', recall, { 'no-writes' })
