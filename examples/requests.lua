-- What wrk asks, by the kind that follows its URL; examples/drive.py asks the same.
--   same        nothing changes
--   different   every request differs in path, query, cookie and the order of its headers
--   new         every line of every head is new, under names that a server may remember
--   pipelined   sixteen at a time
-- At the end it prints how the latencies were distributed, in microseconds.
local fields = {
  "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0\r\n",
  "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n",
  "Accept-Language: en-GB,en;q=0.7\r\n",
  "Accept-Encoding: gzip, deflate\r\n",
}
local number = 0

local function different()
  number = number + 1
  local turn, lines = number % 4, {}
  for i = 0, 3 do lines[i + 1] = fields[(turn + i) % 4 + 1] end
  return "GET /p/" .. number .. "?q=" .. number * 7 .. " HTTP/1.1\r\nHost: localhost\r\n"
    .. table.concat(lines) .. "Cookie: session=" .. number * 31
    .. "\r\nX-Request-Id: " .. number .. "\r\n\r\n"
end

local function new()
  number = number + 1
  return ("GET / HTTP/1.1\r\nHost: h%d\r\nUser-Agent: a%d\r\nAccept: b/%d\r\n"
    .. "Accept-Language: c%d\r\nAccept-Encoding: d%d\r\nX-%d: e\r\n\r\n"):gsub("%%d", number)
end

local function pipelined(path)
  local one = "GET " .. path .. " HTTP/1.1\r\nHost: localhost\r\n\r\n"
  local all = one:rep(16)
  return function() return all end
end

function init(args)
  if args[1] == "different" then request = different end
  if args[1] == "new" then request = function() return (new()) end end
  if args[1] == "pipelined" then request = pipelined(wrk.path) end
end

function done(summary, latency)
  for _, percent in ipairs({0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100}) do
    print("percentile " .. percent .. " " .. latency:percentile(percent))
  end
end
