-- Arguments: file of the body, then names and values of the headers. The last line of the output is JSON.
function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
  for i = 2, #args, 2 do
    wrk.headers[args[i]] = args[i + 1]
  end
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '\n{"answers":%d,"seconds":%.6f,"p50_s":%.6f,"p99_s":%.6f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout))
end
