-- reclaim: take over entries whose owner has been silent for a lease; bury the poisonous.
--
-- KEYS  prefix, streams
-- ARGV  group, consumer, lease (ms), max deliveries, count wanted, ledger ttl (ms), stage,
--       then per lease the caller still works on: stream index, entry
-- Reply {buried, {stream index, entry, deliveries, task id, unit, payload}…}
--
-- An entry delivered `max deliveries` times whose last owner fell silent too is a dead letter
-- "poison": something in it kills its consumers.
local function reclaim(keys, argv)
  local group, consumer, lease, max = argv[1], argv[2], argv[3], tonumber(argv[4])
  local want, ttl, stage = tonumber(argv[5]), argv[6], argv[7]
  local reply, mine = { 0 }, {}
  for i = 8, #argv, 2 do mine[argv[i] .. '/' .. argv[i + 1]] = true end
  for s = 2, #keys do
    local stream = keys[s]
    local idle = redis.pcall('XPENDING', stream, group, 'IDLE', lease, '-', '+', 256)
    if idle.err then idle = {} end
    for _, row in ipairs(idle) do
      local entry, owner, deliveries = row[1], row[2], row[4]
      local f = entry_of(stream, entry)
      if not f then
        redis.call('XACK', stream, group, entry)
      elseif mine[(s - 1) .. '/' .. entry] then
        -- The caller is well and works on it; only its heartbeat is late.
      elseif deliveries >= max then
        local err = 'delivered ' .. deliveries .. ' times; the last consumer to fall silent was ' .. owner
        bury(keys[1], f.id, f.u, stage, s - 1, 'poison', err, f.p, deliveries, ttl)
        drop(stream, group, entry)
        reply[1] = reply[1] + 1
      elseif want > 0 and #redis.call('XCLAIM', stream, group, consumer, lease, entry) == 1 then
        reply[#reply + 1] = { s - 1, entry, deliveries + 1, f.id, f.u, f.p }
        want = want - 1
        count(keys[1], 'reclaimed')
      end
    end
  end
  return reply
end

register('reclaim', reclaim)
