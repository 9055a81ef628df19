-- reclaim: take over entries whose owner has been silent for a lease; bury the poisonous.
--
-- KEYS  prefix, streams
-- ARGV  group, consumer, lease (ms), max deliveries, count wanted, ledger ttl (ms), stage,
--       '1' if a reply of `take` to the caller was lost, else '0',
--       this server's time when the caller last heard it (ms; 0: not told),
--       then per lease the caller still works on: stream index, entry
-- Reply {buried, handed out again uncounted, such entries left for another call, {stream index, entry, deliveries,
--       task id, unit, payload}…}
--
-- A call that lay before a frozen server for over half a lease takes nothing: the owners' renewals
-- lie behind it. An entry delivered `max deliveries` times whose last owner fell silent too is a
-- dead letter "poison": something in it kills its consumers. An entry that is the caller's without its
-- knowing, after a reply got lost, was handed out in that reply: nobody died on it, so it is handed
-- out again, uncounted.

-- Pending entries nobody renewed for a lease, but for those handed back: they are free already,
-- `take` hands them out, and however many there are they must not hide the others.
local function silent(stream, group, lease)
  local found, from = {}, '-'
  for _ = 1, 64 do
    local page = redis.pcall('XPENDING', stream, group, 'IDLE', lease, from, '+', 256)
    if page.err or #page == 0 then break end
    for _, row in ipairs(page) do
      if row[2] ~= RELEASED then found[#found + 1] = row end
    end
    if #page < 256 or #found >= 256 then break end
    from = '(' .. page[#page][1]
  end
  return found
end

local function reclaim(keys, argv)
  local prefix, group, consumer, lease = keys[1], argv[1], argv[2], argv[3]
  local max, want, ttl, stage = tonumber(argv[4]), tonumber(argv[5]), argv[6], argv[7]
  local reply, mine, unsure = { 0, 0, 0 }, {}, argv[8] == '1'
  local heard = tonumber(argv[9])
  if heard > 0 and now_ms() - heard > tonumber(lease) / 2 then return reply end
  local work = stage == 'work'
  local paused = work and redis.call('HEXISTS', prefix .. 'control', 'paused') == 1
  for i = 10, #argv, 2 do mine[argv[i] .. '/' .. argv[i + 1]] = true end
  for s = 2, #keys do
    local stream = keys[s]
    for _, row in ipairs(silent(stream, group, lease)) do
      local entry, owner, deliveries = row[1], row[2], row[4]
      local f = entry_of(stream, entry)
      if not f then
        redis.call('XACK', stream, group, entry)
      elseif mine[(s - 1) .. '/' .. entry] then
        -- The caller is well and works on it; only its heartbeat is late.
      elseif work and redis.call('SISMEMBER', prefix .. 'cancel', f.id) == 1 then
        drop(stream, group, entry)
        cancel_unit(prefix, f.id, f.u, ttl)
      elseif owner == consumer and unsure then
        if want > 0 and not paused then
          redis.call('XCLAIM', stream, group, consumer, 0, entry, 'JUSTID')
          reply[#reply + 1] = { s - 1, entry, deliveries, f.id, f.u, f.p }
          reply[2] = reply[2] + 1
          want = want - 1
        else
          reply[3] = reply[3] + 1
        end
      elseif deliveries >= max then
        note(prefix .. 't:' .. f.id, f.u, 'delivery ' .. deliveries .. ': ' .. owner .. ' fell silent')
        local err = 'delivered ' .. deliveries .. ' times; the last consumer to fall silent was ' .. owner
        bury(prefix, f.id, f.u, stage, s - 1, 'poison', err, f.p, deliveries, ttl)
        if work then forget_journal(prefix, f.id, f.u) end
        drop(stream, group, entry)
        reply[1] = reply[1] + 1
      elseif want > 0 and not paused
          and #redis.call('XCLAIM', stream, group, consumer, lease, entry) == 1 then
        note(prefix .. 't:' .. f.id, f.u, 'delivery ' .. deliveries .. ': ' .. owner .. ' fell silent')
        reply[#reply + 1] = { s - 1, entry, deliveries + 1, f.id, f.u, f.p }
        want = want - 1
        count(prefix, 'reclaimed')
      end
    end
  end
  return reply
end

register('reclaim', reclaim)
