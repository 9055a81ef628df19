-- restore: add to a budget what was remembered of it when the server had forgotten everything, unless
-- somebody else was faster. What was said and spent since then stays.
--
-- KEYS  prefix
-- ARGV  scope, then field, value pairs: spent amounts and calls are added; limits hold where nobody
--       has set another one since
-- Reply 1 (restored) or 0 (it was before)
local function restore(keys, argv)
  local scope, key = argv[1], keys[1] .. 'b:' .. argv[1]
  if redis.call('HGET', key, 'restored') then return 0 end
  incarnation(keys[1])
  local ctx = open(keys[1], '')
  local b = budget(ctx, scope)
  for i = 2, #argv, 2 do
    local name, value = argv[i], tonumber(argv[i + 1])
    if name:sub(-6) == '_limit' then
      b[name] = b[name] or value
    else
      b[name] = b[name] + value
    end
  end
  b.restored, b.changed = 1, true
  save(ctx)
  return 1
end

register('restore', restore)
