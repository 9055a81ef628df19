-- decide: put what people said into a unit's wait; the last word that was missing ends it.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  ledger ttl (ms), task id, unit, version of the wait that the caller saw, token (unique to
--       this call), the wait with the words in it (JSON), verb and three more, which are
--         hold  '', '', ''                                 more words are missing
--         next  lane (1-3), payload (JSON), next unit      the next revision goes to work
--         end   outcome, '', ''                            the unit ends, e.g. rejected
--       then per word for the decision log: what was said, record (JSON)
-- Reply {1} (done, now or by this very call before), {0} (it changed meanwhile: read it again) or
--       {-1} (nothing is known of it)
local function decide(keys, argv)
  local prefix, ttl, id, unit, token = keys[1], argv[1], argv[2], argv[3], argv[5]
  local ledger, wait = prefix .. 't:' .. id, prefix .. 'wait:' .. unit .. '|' .. id
  local version = redis.call('HGET', wait, 'v')
  if not version then return { -1 } end
  if version ~= argv[4] then
    if redis.call('HGET', wait, 'last') == token then return { 1 } end
    return { 0 }
  end
  if redis.call('HGET', ledger, 'u:' .. unit) ~= 'waiting' then
    -- Somebody removed the ledger: there is no task to go on with.
    end_wait(prefix, id, unit, 'lost', '', '', ttl)
    return { 0 }
  end
  redis.call('HSET', wait, 'wait', argv[6], 'last', token)
  for i = 11, #argv, 2 do
    log_decision(prefix, id, unit, argv[i], argv[i + 1])
  end
  local verb, a, b, c = argv[7], argv[8], argv[9], argv[10]
  if verb == 'hold' then
    redis.call('HINCRBY', wait, 'v', 1)
    return { 1 }
  end
  end_wait(prefix, id, unit, 'decided', '', '', ttl)
  if verb == 'next' then
    redis.call('HSET', ledger, 'u:' .. unit, 'iterated')
    redis.call('XADD', keys[tonumber(a) + 1], '*', 'id', id, 'u', c, 'p', b)
    count(prefix, 'units')
    count(prefix, 'iterate')
  else
    count(prefix, a)
    end_unit(prefix, id, unit, a, ttl)
  end
  return { 1 }
end

register('decide', decide)
