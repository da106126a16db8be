-- For wrk: POST the file that PICTURE names, again and again; count the answers without a verdict.
local file = assert(io.open(assert(os.getenv("PICTURE"), "set PICTURE to the file to send"), "rb"))
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.body = file:read("*a")
file:close()

function response(status, _, body)
   if status ~= 200 or not body:find('"verdict"', 1, true) then
      io.stderr:write("status " .. status .. ": " .. body:sub(1, 200) .. "\n")
   end
end
