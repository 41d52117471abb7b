-- Arguments: files of bodies, parted by colons, then names and values of the headers. The last line of the output is
-- JSON.
function init(args)
  wrk.method = "POST"
  for i = 2, #args, 2 do
    wrk.headers[args[i]] = args[i + 1]
  end
  local requests = {}
  for name in args[1]:gmatch("[^:]+") do
    local file = assert(io.open(name, "rb"))
    wrk.body = file:read("*a")
    file:close()
    requests[#requests + 1] = wrk.format()
  end
  -- without this function wrk sends wrk.body, and never asks Lua again
  if #requests > 1 then
    local turn = 0
    function request()
      turn = turn % #requests + 1
      return requests[turn]
    end
  end
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '\n{"answers":%d,"seconds":%.6f,"p50_s":%.6f,"p99_s":%.6f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout))
end
