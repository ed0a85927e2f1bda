-- For wrk: every request differs in path, query, cookie and the order of its headers.
-- examples/load.py makes the same requests for its own generator.
local fields = {
  "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0\r\n",
  "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n",
  "Accept-Language: en-GB,en;q=0.7\r\n",
  "Accept-Encoding: gzip, deflate\r\n",
}
local number = 0

request = function()
  number = number + 1
  local turn, lines = number % 4, {}
  for i = 0, 3 do lines[i + 1] = fields[(turn + i) % 4 + 1] end
  return "GET /p/" .. number .. "?q=" .. number * 7 .. " HTTP/1.1\r\nHost: localhost\r\n"
    .. table.concat(lines) .. "Cookie: session=" .. number * 31
    .. "\r\nX-Request-Id: " .. number .. "\r\n\r\n"
end
