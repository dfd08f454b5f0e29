-- The second part of upcall.lua: what was found in a packet becomes a tree, columns and marks.

local function show_fields(tree, rows, view, message)
    for _, row in ipairs(rows) do
        if row.count_at then
            local n = math.min(unsigned(message.raw, row.count_at, row.count_size), row.size)
            if row.offset + n > message.known then return end
            local node = tree:add(F[row.name], view(row.offset, row.size))
            for index = 0, n - 1 do node:add(G.element, view(row.offset + index, 1)) end
        elseif row.offset + row.size > message.known then
            return
        elseif row.size > 0 then
            tree:add_le(F[row.name], view(row.offset, row.size))
            if row.name == "devfn" then
                local devfn = unsigned(message.raw, row.offset, 1)
                tree:add(G.slot, view(row.offset, 1), math.floor(devfn / 8)):set_generated()
                tree:add(G.func, view(row.offset, 1), devfn % 8):set_generated()
            end
        end
    end
end

local function result_text(message)
    local ret = message.ret
    if ret == nil then return "cut off" end
    if ret == 0 then return "ok" end
    local name = T.errnos[-ret]
    local meaning = (T.meanings[message.msg_type or -1] or {})[ret] or ""
    local number = name and string.format("%s (%d)", name, ret) or string.format("ret %d", ret)
    return meaning == "" and number or number .. " " .. meaning
end

local function show_anomalies(tree, message)
    for _, name in ipairs(message.anomalies) do
        if not (name == "short-request" and message.anomaly_removed) then
            local item = tree:add(G.anomaly, name)
            item:set_generated()
            if name == "bad-magic" then item:add_proto_expert_info(E.magic)
            elseif name == "reply-mismatch" then item:add_proto_expert_info(E.mismatch)
            elseif name:find("stale", 1, true) then item:add_proto_expert_info(E.stale)
            elseif name:find("request", 1, true) then item:add_proto_expert_info(E.pieces)
            end
        end
    end
end

local function view_of(tvb, offset, message, size, title)
    -- The bytes of this packet where the message is whole in it, else a view made of its bytes.
    local position = message.position or message.span
    if size == T.message_size and position >= 0 and offset + position + size <= tvb:len() then
        return function(at, length) return tvb(offset + position + at, length) end
    end
    local made = ByteArray.new(message.raw, true):tvb(title)
    return function(at, length) return made(at, length) end
end

local function show(tvb, offset, pinfo, tree, message)
    if message.what == "service" then
        local node = tree:add(upcall, tvb(offset, 1), "Upcall: service byte")
        node:add(G.conn, message.conn):set_generated()
        local item = node:add(G.service, tvb(offset, 1))
        if not T.services[message.value] then item:add_proto_expert_info(E.service) end
        return "service byte"
    end
    local op = op_name(message.msg_type)
    if message.what == "request" then
        local view = view_of(tvb, offset, message, message.size, "Request as the guest saw it")
        local title = string.format("Upcall: request %d.%d %s", message.conn, message.request, op)
        local node = tree:add(upcall, view(0, T.message_size), title)
        node:add(G.conn, message.conn):set_generated()
        node:add(G.request, message.request):set_generated()
        if message.msg_type then node:add(G.op, op):set_generated() end
        show_fields(node, T.header, view, message)
        local loads = T.requests[message.arch] or {}
        show_fields(node, loads[message.msg_type or -1] or {}, view, message)
        if message.known < T.message_size then node:add_proto_expert_info(E.cut) end
        if message.msg_type and not T.handled[message.msg_type] then node:add_proto_expert_info(E.unknown) end
        show_anomalies(node, message)
        if message.reply then
            node:add(G.reply_in, message.reply.frame):set_generated()
        elseif pinfo.visited then
            node:add_proto_expert_info(E.unanswered)
        end
        return string.format("> %s", op)
    end
    local view = view_of(tvb, offset, message, T.message_size, "Reassembled message")
    if message.what == "hello" then
        local node = tree:add(upcall, view(0, T.message_size), "Upcall: CONNECT message, the service is ready")
        node:add(G.conn, message.conn):set_generated()
        if message.known < T.message_size then node:add_proto_expert_info(E.cut) end
        if knows(message, 12) then node:add(G.hello, message.valid):set_generated() end
        show_fields(node, T.header, view, message)
        show_fields(node, T.reply, view, message)
        return "< connect"
    end
    local text = result_text(message)
    local title = string.format("Upcall: reply to %s.%s %s: %s", message.conn, message.request or "?", op, text)
    local node = tree:add(upcall, view(0, T.message_size), title)
    node:add(G.conn, message.conn):set_generated()
    if message.request then node:add(G.request, message.request):set_generated() end
    if message.msg_type then node:add(G.op, op):set_generated() end
    show_fields(node, T.header, view, message)
    show_fields(node, T.reply, view, message)
    local arch = message.asked and message.asked.arch or message.arch
    show_fields(node, (T.replies[arch] or {})[message.msg_type or -1] or {}, view, message)
    if message.known < T.message_size then node:add_proto_expert_info(E.cut) end
    if message.ret and message.ret < 0 then
        local name = T.errnos[-message.ret]
        if name then node:add(G.errno, name):set_generated() end
        node:add_proto_expert_info(E.failed, text)
    end
    node:add(G.meaning, text):set_generated()
    show_anomalies(node, message)
    if message.asked then
        node:add(G.request_in, message.asked.frame):set_generated()
        node:add(G.latency, message.latency_ns / 1e9):set_generated()
        node:add(G.latency_ns, UInt64.new(message.latency_ns % 4294967296, math.floor(message.latency_ns / 4294967296))):set_generated()
        if message.latency_ns > LATE_NS then node:add_proto_expert_info(E.late) end
    end
    return string.format("< %s %s", op, text)
end

local original = DissectorTable.get("wtap_encap"):get_dissector((wtap_encaps or wtap).VSOCK)

local LARGEST = 1048576 -- no payload is larger; a file may lie

local function header_of(tvb, sent)
    local length = tvb:captured_len()
    if length < VSOCKMON_SIZE then return nil end
    local header = {
        src_cid = tvb(0, 8):le_uint64():tonumber(), dst_cid = tvb(8, 8):le_uint64():tonumber(),
        src_port = tvb(16, 4):le_uint(), dst_port = tvb(20, 4):le_uint(),
        op = tvb(24, 2):le_uint(), payload = VSOCKMON_SIZE + tvb(28, 2):le_uint(),
    }
    header.src = tvb(0, 8):bytes():tohex() .. ":" .. header.src_port
    header.dst = tvb(8, 8):bytes():tohex() .. ":" .. header.dst_port
    header.stop, header.sent = length, sent
    if header.payload > length then return nil end
    if tvb(26, 2):le_uint() == VIRTIO and header.payload >= VSOCKMON_SIZE + VIRTIO_SIZE then
        header.virtio_op = tvb(62, 2):le_uint()
        -- A captured packet may be padded: the header says how long its payload is.
        if header.op == OP.PAYLOAD then
            header.sent = math.min(sent, header.payload + tvb(56, 4):le_uint())
            header.stop = math.min(length, header.sent)
        end
    end
    return header
end

-- Since the first packet: a double holds that to the nanosecond, and not the time since 1970.
local function nanoseconds(pinfo)
    return math.floor(pinfo.rel_ts * 1e9 + 0.5)
end

function upcall.dissector(tvb, pinfo, tree)
    if tvb:captured_len() == 0 then
        tree:add_proto_expert_info(E.cut)
        return
    end
    -- The original gets no more than was captured: in older versions, its complaint about a packet
    -- that is cut would go past Lua and take of Lua's stack each time. What it says of these bytes
    -- is caught; it has shown it already.
    local captured = tvb(0, tvb:captured_len()):tvb()
    if original then pcall(original.call, original, captured, pinfo, tree) end
    local header = header_of(captured, math.max(tvb:reported_len(), tvb:captured_len()))
    if not header then
        if tvb:captured_len() < tvb:reported_len() then tree:add_proto_expert_info(E.cut) end
        return
    end
    local found = results[pinfo.number]
    if not found then
        local payload = ""
        if header.stop > header.payload then
            payload = captured:raw(header.payload, header.stop - header.payload)
        end
        local length = math.min(math.max(0, header.sent - header.payload), LARGEST)
        found = follow(header, payload:sub(1, length), length, nanoseconds(pinfo), pinfo.number)
        results[pinfo.number] = found
    end
    if #found == 0 then return end
    local words = {}
    for _, message in ipairs(found) do
        words[#words + 1] = show(captured, header.payload, pinfo, tree, message)
    end
    pinfo.cols.protocol = "UPCALL"
    pinfo.cols.info = table.concat(words, ", ")
end

DissectorTable.get("wtap_encap"):add((wtap_encaps or wtap).VSOCK, upcall)
