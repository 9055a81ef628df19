-- counts: a scene at a glance, all at one moment. Only reads, so that it runs when memory is full:
-- Redis 7.0 refuses even reads in MULTI then.
--
-- KEYS  prefix, hi, mid, lo
-- ARGV  none
-- Reply {length of hi, mid, lo, events and delayed, then of hi, mid and lo how many a consumer works
--        on (what one handed back waits again), units that wait for people and still may, stats
--        (flat), control (flat)}
local function counts(keys)
  local prefix, reply = keys[1], {}
  for lane = 2, 4 do reply[#reply + 1] = redis.call('XLEN', keys[lane]) end
  reply[#reply + 1] = redis.call('XLEN', prefix .. 'events')
  reply[#reply + 1] = redis.call('ZCARD', prefix .. 'delayed')
  for lane = 2, 4 do
    -- A lane that nobody has touched yet has no group, and XPENDING of it is an error.
    local pending = redis.pcall('XPENDING', keys[lane], 'workers')
    local running = pending.err and 0 or pending[1]
    for _, owner in ipairs(not pending.err and pending[4] or {}) do
      if owner[1] == RELEASED then running = running - tonumber(owner[2]) end
    end
    reply[#reply + 1] = running
  end
  reply[#reply + 1] = redis.call('ZCOUNT', prefix .. 'waits', '(' .. now_ms(), '+inf')
  reply[#reply + 1] = redis.call('HGETALL', prefix .. 'stats')
  reply[#reply + 1] = redis.call('HGETALL', prefix .. 'control')
  return reply
end

register('counts', counts, { 'no-writes' })
