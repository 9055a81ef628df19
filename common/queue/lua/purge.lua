-- purge: throw dead letters away. Their tasks stay ended; what they counted stays counted.
--
-- KEYS  prefix
-- ARGV  by, why, then ids of entries in the dead stream
-- Reply number purged; entries that are gone are passed over
local function purge(keys, argv)
  local prefix, purged = keys[1], 0
  for i = 3, #argv do
    local f = entry_of(prefix .. 'dead', argv[i])
    if f then
      redis.call('XDEL', prefix .. 'dead', argv[i])
      local ledger = prefix .. 't:' .. f.id
      -- Its task may have begun a new life since, which pays for its own answers.
      if redis.call('EXISTS', ledger) == 0 or redis.call('HGET', ledger, 'u:' .. f.u) == 'dead' then
        forget_journal(prefix, f.id, f.u)
      end
      count(prefix, 'dead', -1)
      audit(prefix, argv[1], 'dead.purge', f.id .. ' ' .. f.u, argv[2])
      purged = purged + 1
    end
  end
  return purged
end

register('purge', purge)
