// The same reckoning as tally.ts, in Lua for Redis and Valkey: each operation is one script, so that replicas cannot come between its steps.
import { STEPS, UNFORETOLD_MS } from './windows.ts';

/**
 * What every script begins with. Times are whole microseconds of the server's clock: replicas need not agree on theirs.
 *
 * KEYS, of one caller and so in one slot of a cluster; the keys of its leases are made from the first (`…:lease:ID`):
 *   sums   hash: `at` (the last time seen), `tokens`, `money` and `slots` that live leases hold, for each kind of period
 *          `from:KIND` (its start) and `spent:KIND`; and `counted`, the sum of the steps, with the `last` of them, as they
 *          stood when step number `step` had begun (adding them up each time took 0.1 ms of a busy caller's admission)
 *   log    list: times of admission, oldest first
 *   steps  hash: tokens debited, by step of the window
 *   live   sorted set: leases by the time at which they expire
 * Each lease is a string, packed; a settled one says `settled` for a while, so that a settlement told twice counts once.
 *
 * ARGV: the time if it is not to be the server's, the window, a lease's life and how long it is remembered, how long its
 * settlement is (all µs); the limits: requests, tokens, streams, budget, its period ('' where there is none); then each
 * script's own.
 *
 * `%.0f` wherever a number goes to Redis: Lua alone would write 1e+15.
 */
const PRELUDE = `
local sums, log, steps, live = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local window, life, keep, keepSettled = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local limits = { requests = tonumber(ARGV[6]), tokens = tonumber(ARGV[7]), streams = tonumber(ARGV[8]), budget = tonumber(ARGV[9]) }
local per = ARGV[10]
local OWN = 11
local UNFORETOLD = ${UNFORETOLD_MS * 1000}
local DAY = 86400000000

local function whole(number) return string.format('%.0f', number) end
local function keyOf(lease) return string.sub(sums, 1, -5) .. 'lease:' .. lease end
local function keepFor(key, us) redis.call('PEXPIRE', key, whole(math.ceil(us / 1000) + 1000)) end

local time = redis.call('TIME')
local now = tonumber(ARGV[1]) or time[1] * 1000000 + time[2]

-- Days since 1970 of the first of a month counted from year 0, March being its first (leap days come last then).
local function firstDayOf(month)
  local year, inYear = math.floor(month / 12), month % 12
  return year * 365 + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400) + math.floor((153 * inYear + 2) / 5) - 719468
end

-- The period that holds this moment: its start and its end.
local function period()
  if per == 'month' then
    local day = math.floor(now / DAY)
    -- Too early by a month at the most.
    local month = math.floor((day + 719468) / 30.436875) - 1
    while firstDayOf(month + 1) <= day do month = month + 1 end
    return firstDayOf(month) * DAY, firstDayOf(month + 1) * DAY
  end
  local length = per == 'hour' and DAY / 24 or per == 'week' and 7 * DAY or DAY
  -- 5 January 1970 was the first Monday.
  local offset = per == 'week' and 4 * DAY or 0
  local from = math.floor((now - offset) / length) * length + offset
  return from, from + length
end

local known = redis.call('HMGET', sums, 'at', 'tokens', 'money', 'slots', 'from:' .. per, 'spent:' .. per, 'step', 'counted', 'last')
local held = { tokens = tonumber(known[2]) or 0, money = tonumber(known[3]) or 0, slots = tonumber(known[4]) or 0 }
local isChanged = false

-- A clock that was set back a little (a failover, say) stands still until it is where it was; if it was set back by more,
-- what lies ahead is dropped, or it would be counted for as long as that.
local at = tonumber(known[1]) or 0
if at > now then
  if at - now <= window then
    now = at
  else
    redis.call('DEL', log, steps, live)
    known[7] = false
    held = { tokens = 0, money = 0, slots = 0 }
    isChanged = true
  end
end

local length = window / ${STEPS}
local function endOf(step) return step * length end
-- Steps leave the window only as one begins.
local stepNow = math.floor(now / length)
local function isGone(step) return step <= stepNow - ${STEPS} end
local steadyStep, counted, last = tonumber(known[7]), tonumber(known[8]) or 0, tonumber(known[9]) or 0

local from, to, spent = 0, 0, 0
if limits.budget then
  from, to = period()
  if tonumber(known[5]) == from then spent = tonumber(known[6]) or 0 end
end

local function unpackLease(packed)
  if packed and packed ~= 'settled' then return cmsgpack.unpack(packed) end
end

-- What a live lease holds, onto the sums or off them.
local function count(lease, sign)
  held.tokens = held.tokens + sign * math.max(0, lease.reserveTokens - lease.tokens)
  held.money = held.money + sign * math.max(0, lease.reserveMoney - lease.money)
  if lease.slot then held.slots = held.slots + sign end
  isChanged = true
end

local expired = redis.call('ZRANGEBYSCORE', live, '-inf', whole(now))
for _, id in ipairs(expired) do
  local lease = unpackLease(redis.call('GET', keyOf(id)))
  if lease then count(lease, -1) end
end
if #expired > 0 then redis.call('ZREMRANGEBYSCORE', live, '-inf', whole(now)) end
-- Should a server short of memory have evicted a lease, its part goes with the last one.
if (held.tokens ~= 0 or held.money ~= 0 or held.slots ~= 0) and redis.call('EXISTS', live) == 0 then
  held = { tokens = 0, money = 0, slots = 0 }
  isChanged = true
end

local function newLease(slot, tokens, money)
  return { slot = slot, reserveTokens = tokens, reserveMoney = money, tokens = 0, money = 0, debits = {}, from = 0, inPeriod = 0 }
end

local function enliven(id, lease)
  count(lease, 1)
  redis.call('ZADD', live, whole(now + life), id)
  keepFor(live, life)
  redis.call('SET', keyOf(id), cmsgpack.pack(lease), 'PX', whole(math.ceil((life + keep) / 1000)))
end

local function debitTokens(lease, growth)
  -- Pairs of a step and what was debited to it, oldest first.
  local debits = lease.debits
  while debits[1] and isGone(debits[1]) do
    table.remove(debits, 1)
    table.remove(debits, 1)
  end
  if growth > 0 then
    local step = math.ceil(now / length)
    redis.call('HINCRBY', steps, whole(step), whole(growth))
    keepFor(steps, window + length)
    counted = counted + growth
    last = step
    if debits[#debits - 1] == step then
      debits[#debits] = debits[#debits] + growth
    else
      table.insert(debits, step)
      table.insert(debits, growth)
    end
  end
  local back = -growth
  if back > 0 then steadyStep = nil end
  while back > 0 and #debits > 0 do
    local tokens = math.min(back, debits[#debits])
    redis.call('HINCRBY', steps, whole(debits[#debits - 1]), whole(-tokens))
    back = back - tokens
    debits[#debits] = debits[#debits] - tokens
    if debits[#debits] == 0 then
      table.remove(debits)
      table.remove(debits)
    end
  end
end

local function debitMoney(lease, growth)
  if lease.from ~= from then
    lease.from = from
    lease.inPeriod = 0
  end
  -- What an earlier period was debited is given back to that one, which nobody asks for any more.
  local change = math.max(growth, -lease.inPeriod)
  lease.inPeriod = lease.inPeriod + change
  spent = math.max(0, spent + change)
end

-- Brings a lease's debits to what it has spent in all.
local function debit(lease, tokens, money)
  if limits.tokens then debitTokens(lease, tokens - lease.tokens) end
  if limits.budget then debitMoney(lease, money - lease.money) end
  lease.tokens = tokens
  lease.money = money
  isChanged = true
end

local function save()
  if not isChanged then return end
  redis.call('HSET', sums, 'at', whole(now), 'tokens', whole(held.tokens), 'money', whole(held.money), 'slots', whole(held.slots))
  if limits.tokens then redis.call('HSET', sums, 'step', whole(steadyStep or -1), 'counted', whole(counted), 'last', whole(last)) end
  if limits.budget then redis.call('HSET', sums, 'from:' .. per, whole(from), 'spent:' .. per, whole(spent)) end
  keepFor(sums, math.max(window + life, to - now))
end

local function countRequests()
  if not limits.requests then return 0 end
  local first = redis.call('LINDEX', log, 0)
  while first and tonumber(first) <= now - window do
    local oldest = redis.call('LRANGE', log, 0, 99)
    local gone = 0
    while gone < #oldest and tonumber(oldest[gone + 1]) <= now - window do gone = gone + 1 end
    redis.call('LTRIM', log, gone, -1)
    first = redis.call('LINDEX', log, 0)
  end
  return redis.call('LLEN', log)
end

-- Adds the steps up; returns them, in no order.
local function countTokens()
  if steadyStep ~= stepNow then isChanged = true end
  counted, last, steadyStep = 0, 0, stepNow
  local stored, found, gone = redis.call('HGETALL', steps), {}, {}
  for at = 1, #stored, 2 do
    local step, tokens = tonumber(stored[at]), tonumber(stored[at + 1])
    if isGone(step) then
      table.insert(gone, stored[at])
    elseif tokens > 0 then
      table.insert(found, { step, tokens })
      counted = counted + tokens
      last = math.max(last, step)
    end
  end
  if #gone > 0 then redis.call('HDEL', steps, unpack(gone)) end
  return found
end

-- What is used of each limit, and how long until it is as if nothing had been.
local function stand(requests)
  local answer = { requests, 0, counted + held.tokens, 0, held.slots, spent + held.money, to - now }
  if requests > 0 then answer[2] = redis.call('LINDEX', log, -1) + window - now end
  answer[4] = held.tokens > 0 and window or endOf(last) + window - now
  return answer
end
`;

/** Own arguments: the lease, the tokens and the money it reserves. Answers who refuses (''), how long, and the standings. */
export const ADMIT = `${PRELUDE}
local id, reserveTokens, reserveMoney = ARGV[OWN], tonumber(ARGV[OWN + 1]), tonumber(ARGV[OWN + 2])
local requests = countRequests()
if limits.tokens and steadyStep ~= stepNow then countTokens() end

local refusedBy, wait = '', 0
local function refuse(name, us)
  if refusedBy == '' then refusedBy = name end
  wait = math.max(wait, math.ceil(us))
end
if limits.budget and spent + held.money >= limits.budget then
  refuse('budget', spent >= limits.budget and to - now or UNFORETOLD)
end
if limits.requests and requests >= limits.requests then
  local last = limits.requests > 0 and redis.call('LINDEX', log, whole(-limits.requests)) or now
  refuse('requests', last + window - now)
end
if limits.tokens and counted + held.tokens >= limits.tokens then
  -- Until enough steps have gone, the reservations staying as they are.
  local oldestFirst = countTokens()
  table.sort(oldestFirst, function(one, other) return one[1] < other[1] end)
  local used, us = counted + held.tokens, UNFORETOLD
  for _, pair in ipairs(oldestFirst) do
    used = used - pair[2]
    if used < limits.tokens then
      us = endOf(pair[1]) + window - now
      break
    end
  end
  refuse('tokens', us)
end
if limits.streams and held.slots >= limits.streams then refuse('streams', UNFORETOLD) end

if refusedBy == '' then
  if limits.requests then
    redis.call('RPUSH', log, whole(now))
    keepFor(log, window)
    requests = requests + 1
    isChanged = true
  end
  if limits.tokens or limits.streams or limits.budget then
    enliven(id, newLease(limits.streams ~= nil, limits.tokens and reserveTokens or 0, limits.budget and reserveMoney or 0))
  end
end
save()
return { refusedBy, wait, stand(requests) }
`;

/** Own arguments: lease, tokens and money, for each lease of this caller. Answers 1 where the budget is spent. */
export const RENEW = `${PRELUDE}
for own = OWN, #ARGV, 3 do
  local id = ARGV[own]
  local packed = redis.call('GET', keyOf(id))
  if packed ~= 'settled' then
    -- One that is not known (a server that lost its memory) is debited in full.
    local lease = unpackLease(packed) or newLease(limits.streams ~= nil, 0, 0)
    if redis.call('ZSCORE', live, id) then count(lease, -1) end
    debit(lease, tonumber(ARGV[own + 1]), tonumber(ARGV[own + 2]))
    enliven(id, lease)
  end
end
save()
return limits.budget and spent >= limits.budget and 1 or 0
`;

/** Own argument: the lease. */
export const FREE = `${PRELUDE}
local id = ARGV[OWN]
local lease = unpackLease(redis.call('GET', keyOf(id)))
if lease and lease.slot then
  lease.slot = false
  if redis.call('ZSCORE', live, id) then
    held.slots = held.slots - 1
    isChanged = true
  end
  redis.call('SET', keyOf(id), cmsgpack.pack(lease), 'KEEPTTL')
end
save()
`;

/** Own arguments: the lease, its tokens and its money in all. */
export const SETTLE = `${PRELUDE}
local id = ARGV[OWN]
local packed = redis.call('GET', keyOf(id))
if packed ~= 'settled' then
  local lease = unpackLease(packed) or newLease(false, 0, 0)
  if redis.call('ZREM', live, id) == 1 then count(lease, -1) end
  debit(lease, tonumber(ARGV[OWN + 1]), tonumber(ARGV[OWN + 2]))
  redis.call('SET', keyOf(id), 'settled', 'PX', whole(math.ceil(keepSettled / 1000)))
end
save()
`;

/** No arguments of its own. Answers the standings. */
export const STAND = `${PRELUDE}
local requests = countRequests()
if limits.tokens and steadyStep ~= stepNow then countTokens() end
local answer = stand(requests)
save()
return answer
`;

/** Writes: a server that may only be read (a replica, or one out of memory) is as good as away. */
export const PROBE = `return redis.call('SET', KEYS[1], '1', 'PX', 1000)`;
