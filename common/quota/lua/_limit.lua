-- The limits of one provider key: calls in flight, requests and tokens a minute, pauses.
-- Not a function of its own.
--
-- Calls in flight: a provider's limit is found as TCP finds a line's, with two changes. What a
-- refusal teaches is counted and not guessed: of `base` calls in flight when the first 429 came,
-- those not refused were accepted, so the limit is base - refused. And once found it is kept, not
-- sawn at: one probe above it after `patience` calls that went well, and longer after each that was
-- refused, so probing costs at most one call of a hundred.
--
--   limit     calls that may be in flight (a fraction grows it)    inflight  that are
--   ceiling   the most that was accepted; 0: not known yet         full 1: calls wait for a slot
--   serial    number of the last call let through
--   cut       `serial` at the last 429 that opened a round: 429s of calls up to it belong to it
--   base, refused   of that round; base 0: it teaches nothing about slots
--   wins      calls since then that went well
--   good      the ceiling before the present trouble
--   strikes   refusals in a row far below it: a storm, not just a full house
--   top       wins at the ceiling         patience wins at the ceiling before the next probe
--   trial 1: the last probe is not refused so far   step   how much the next one adds
--   paused    nothing goes out before this time, ms (Retry-After, or a storm's back-off)
--   ticket    number of the last call that queued
--   rpm, tpm  as configured, 0: none; r_level/r_at, t_level/t_at  their buckets
--   ratio     real tokens to estimated ones, of late     ok, limited  calls counted

local PATIENCE, IMPATIENCE, LONGEST_PATIENCE = 100, 20, 1600 -- calls
-- ms. An hour is the most that is believed at once: a header may be wrong, and one probe an hour
-- costs nobody anything.
local LONGEST_PAUSE, LONGEST_BACKOFF = 3600000, 15000

local function provider(ctx, id, rpm, tpm, start)
  local p = ctx.providers[id]
  if not p then
    p = numbers(ctx.P .. 'p:' .. id, {
      limit = start or 1, ceiling = 0, inflight = 0, full = 0, serial = 0, cut = 0, base = 0,
      refused = 0, wins = 0, strikes = 0, good = 0, top = 0, patience = PATIENCE, trial = 0, step = 1,
      paused = 0, ticket = 0, rpm = 0, tpm = 0, r_level = 1e12, r_at = ctx.now, t_level = 1e12,
      t_at = ctx.now, ratio = 1, ok = 0, limited = 0,
    })
    ctx.providers[id] = p
  end
  if rpm then p.rpm, p.tpm = rpm, tpm end
  return p
end

-- A bucket of `size` that gives at most `limit` in any minute: its size and its refill per ms.
local function requests_bucket(rpm)
  local size = math.max(1, rpm / 30)
  return size, (rpm - size + 1) / 60000
end

local function tokens_bucket(tpm)
  local size = tpm / 6
  return size, (tpm - size) / 60000
end

local function refill(ctx, p, level, at, size, rate)
  p[level] = math.min(size, p[level] + (ctx.now - p[at]) * rate)
  p[at] = ctx.now
end

-- Would a call fit now? nil: yes. 'full': a slot must come free. A number: in so many ms.
local function crowded(ctx, p, tokens)
  if p.paused > ctx.now then return p.paused - ctx.now end
  if p.inflight >= math.floor(p.limit) then
    p.full = 1
    return 'full'
  end
  if p.rpm > 0 then
    local size, rate = requests_bucket(p.rpm)
    refill(ctx, p, 'r_level', 'r_at', size, rate)
    if p.r_level < 1 then return math.ceil((1 - p.r_level) / rate) end
  end
  if p.tpm > 0 then
    local size, rate = tokens_bucket(p.tpm)
    refill(ctx, p, 't_level', 't_at', size, rate)
    local need = math.min(size, tokens * p.ratio) -- a call larger than the bucket takes it in debt
    if p.t_level < need then return math.ceil((need - p.t_level) / rate) end
  end
  return nil
end

-- Let a call through; returns its serial number and the tokens taken from the bucket.
local function enter(p, tokens)
  p.inflight, p.serial = p.inflight + 1, p.serial + 1
  if p.rpm > 0 then p.r_level = p.r_level - 1 end
  if p.tpm == 0 then return p.serial, 0 end
  local taken = math.ceil(tokens * p.ratio)
  p.t_level = p.t_level - taken
  return p.serial, taken
end

local function went_well(p, serial)
  p.ok = p.ok + 1
  if serial <= p.cut then return end -- sent before the last cut: says nothing about the new limit
  p.wins = p.wins + 1
  if p.strikes > 0 and p.wins >= p.limit then p.strikes = 0 end
  if p.full == 0 then return end -- nobody waits: more room would prove nothing
  if p.ceiling == 0 then
    p.limit = p.limit + 1 -- doubles in each round trip
  elseif p.limit < p.ceiling / 2 then
    p.limit = math.min(p.ceiling, p.limit + 1)
  elseif p.limit < p.ceiling then
    p.limit = math.min(p.ceiling, p.limit + math.max(1, p.ceiling / 16) / p.limit)
  else
    p.top = p.top + 1
    if p.trial == 1 and p.top >= math.max(IMPATIENCE, 2 * p.limit) then
      p.patience, p.trial = PATIENCE, 0 -- there is more room than there was: look on, faster
      p.step = math.max(1, math.min(p.step * 2, math.floor(p.limit / 4)))
      p.top = p.patience
    end
    if p.trial == 0 and p.top >= p.patience then
      p.ceiling = p.ceiling + p.step
      p.limit, p.top, p.trial = p.ceiling, 0, 1
    end
  end
end

-- A 429. `asked`: the wait the provider asked for, ms. The call has left `inflight` already.
local function was_refused(ctx, p, serial, asked)
  p.limited = p.limited + 1
  if asked > 0 then p.paused = math.max(p.paused, ctx.now + math.min(asked, LONGEST_PAUSE)) end
  if serial <= p.cut then -- of the round that was cut already: only counts
    p.refused = p.refused + 1
    if p.base > 0 then
      p.ceiling = math.max(1, math.min(p.ceiling, p.base - p.refused))
      p.limit = math.min(p.limit, p.ceiling)
    end
    return
  end
  -- Refusals come back at once, answers take seconds: until one of a call sent since the last cut is
  -- there, what is refused still belongs to the same trouble.
  local again = p.cut > 0 and p.wins < math.max(1, p.limit / 4)
  p.base, p.refused = p.inflight + 1, 1
  p.cut, p.wins, p.top, p.trial, p.step = p.serial, 0, 0, 0, 1
  if again and p.inflight < math.max(1, p.good) / 2 then -- refused where it worked before: a storm
    p.strikes = p.strikes + 1
    p.limit, p.ceiling, p.base = 1, math.max(1, p.good), 0
    if asked <= 0 then -- no word how long: ever longer, spread by what the clock says
      local pause = math.min(LONGEST_BACKOFF, 100 * 2 ^ math.min(p.strikes - 1, 20))
      p.paused = math.max(p.paused, ctx.now + pause * (0.5 + (ctx.micros % 1000) / 1000))
    end
  elseif not again and p.base < 0.7 * math.max(p.limit, p.ceiling) then
    -- Far below what worked: somebody else's load, or a limit on something else.
    p.limit = math.max(1, math.min(p.limit, p.inflight) * 0.7)
    p.ceiling, p.base = math.floor(p.ceiling * 0.9), 0
    -- With no ceiling found, all that were in flight are the most that may have been right.
    p.good = math.max(p.good, p.ceiling > 0 and p.ceiling or p.inflight + 1)
  else
    p.ceiling = math.max(1, p.inflight)
    p.limit = math.min(p.limit, p.ceiling)
    if not again then
      p.good = p.ceiling
      p.patience = math.min(LONGEST_PATIENCE, p.patience * (asked > 0 and 4 or 2))
    end
  end
end

-- A call has ended. `slots`: 1 where it had its slot until now, else 0.
local function leave(ctx, p, slots, serial, verdict, estimated, tokens, taken, asked)
  p.inflight = math.max(0, p.inflight - slots)
  if p.tpm > 0 then p.t_level = p.t_level + taken - tokens end
  if verdict == 'ok' then
    if estimated > 0 then p.ratio = 0.9 * p.ratio + 0.1 * math.min(1, tokens / estimated) end
    went_well(p, serial)
  elseif verdict == 'limited' then
    was_refused(ctx, p, serial, asked)
  end
end
