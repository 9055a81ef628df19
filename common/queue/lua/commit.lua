-- commit: end leases on tasks, all that follows from each in the same call; fenced.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  consumer, ledger ttl (ms), max retries, max waits, then per lease nine fields:
--       lane, entry, deliveries, task id, unit, attempt id, verb, and
--         done      event (JSON), ''      the attempt is in the store: tell the reviewers, once
--                                         all first tries at the task have ended
--         retry     delay (ms), error     infrastructure broke it: again later, up to max
--                                         retries; the delay doubles each time, up to 5 minutes
--         wait      delay (ms), error     a provider's limit held it up: again later, counted
--                                         apart, up to max waits
--         dead      reason, error         running it again cannot help
--         cancelled '', ''                a person asked for it
-- Reply per lease 1 (committed), 2 (this very lease had committed before: a repeated call)
--       or 0 (lost: another consumer owns it; drop the result)

-- What the consumer holds, entry -> deliveries, asked for once where the batch is big: its own
-- pending entries are a list of their own on the server.
local function holdings(stream, consumer, batch)
  local held = {}
  local rows = redis.pcall('XPENDING', stream, 'workers', '-', '+', 4 * batch, consumer)
  if rows.err then return held, true end
  for _, row in ipairs(rows) do held[row[1]] = row[4] end
  return held, #rows < 4 * batch
end

local function retry(prefix, ledger, lane, unit, id, entry_payload, counter, max, delay, err)
  local tries = redis.call('HINCRBY', ledger, counter .. ':' .. unit, 1)
  if tries > max then return false end
  delay = math.max(delay, math.min(delay * 2 ^ (tries - 1), 300000))
  note(ledger, unit, err)
  redis.call('HSET', ledger, 'u:' .. unit, 'delayed', 'p:' .. unit, entry_payload)
  redis.call('ZADD', prefix .. 'delayed', now_ms() + delay, lane .. '|' .. unit .. '|' .. id)
  return true
end

local function commit(keys, argv)
  local prefix, consumer, ttl = keys[1], argv[1], argv[2]
  local max = { retry = tonumber(argv[3]), wait = tonumber(argv[4]) }
  local reply, ended, journals, held, whole = {}, { {}, {}, {} }, {}, {}, {}
  local batch, committed = (#argv - 4) / 9, 0
  for i = 5, #argv, 9 do
    local lane, entry, deliveries = tonumber(argv[i]), argv[i + 1], tonumber(argv[i + 2])
    local id, unit, attempt = argv[i + 3], argv[i + 4], argv[i + 5]
    local verb, a, b = argv[i + 6], argv[i + 7], argv[i + 8]
    local stream, ledger = keys[lane + 1], prefix .. 't:' .. id
    if batch >= 8 and not held[lane] then
      held[lane], whole[lane] = holdings(stream, consumer, batch)
    end
    local ours
    if held[lane] and (whole[lane] or held[lane][entry]) then
      ours = held[lane][entry] == deliveries
      if ours then held[lane][entry] = nil end -- twice in one batch, it commits once
    else
      ours = ended[lane][entry] == nil and owns(stream, 'workers', consumer, entry, deliveries)
    end
    local found = ours and (verb == 'done' or entry_of(stream, entry))
    if ours and not found then
      -- Somebody removed the entry by hand: there is nothing left to end.
      redis.call('XACK', stream, 'workers', entry)
      count(prefix, 'lost')
      leave_group(prefix, id, unit)
      reply[#reply + 1] = 0
    elseif not ours then
      local before = redis.call('HGET', ledger, 'k:' .. unit) == attempt
      if not before then count(prefix, 'lost') end
      reply[#reply + 1] = before and 2 or 0
    else
      if verb == 'done' then
        leave_group(prefix, id, unit, a)
        redis.call('HSET', ledger, 'k:' .. unit, attempt, 'u:' .. unit, 'review')
        committed = committed + 1
        journals[#journals + 1] = prefix .. 'j:' .. id .. ':' .. unit
      else
        redis.call('HSET', ledger, 'k:' .. unit, attempt)
        local payload = found.p
        local cancelled = redis.call('SISMEMBER', prefix .. 'cancel', id) == 1
        if verb == 'cancelled' or (cancelled and verb ~= 'dead') then
          cancel_unit(prefix, id, unit, ttl)
        elseif verb == 'retry' and retry(prefix, ledger, lane, unit, id, payload, 'n',
            max.retry, tonumber(a), b) then
          count(prefix, 'retried')
        elseif verb == 'wait' and retry(prefix, ledger, lane, unit, id, payload, 'w',
            max.wait, tonumber(a), b) then
          count(prefix, 'waited')
        else
          local reason = verb == 'dead' and a or 'retries_exhausted'
          bury(prefix, id, unit, 'work', lane, reason, b, payload, deliveries, ttl)
          -- What was paid for before the money ran out is not paid for again.
          if reason ~= 'budget_exceeded' then forget_journal(prefix, id, unit) end
        end
      end
      ended[lane][entry] = true
      ended[lane][#ended[lane] + 1] = entry
      reply[#reply + 1] = 1
    end
  end
  for lane = 1, 3 do
    if #ended[lane] > 0 then
      redis.call('XACK', keys[lane + 1], 'workers', unpack(ended[lane]))
      redis.call('XDEL', keys[lane + 1], unpack(ended[lane]))
    end
  end
  if committed > 0 then
    count(prefix, 'committed', committed)
    redis.call('UNLINK', unpack(journals))
  end
  return reply
end

register('commit', commit)
