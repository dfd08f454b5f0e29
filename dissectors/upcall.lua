-- Dragonball's upcall channel for Wireshark and tshark, 3.4 to 4.6 (Lua 5.2 to 5.4).
--
-- Made by `upcall-trace wireshark`. It wraps the dissector of LINKTYPE_VSOCK: that one runs first,
-- then this one adds the messages. State is kept by connection while packets come the first time;
-- what a packet holds is stored under its number, because packets are dissected again in any order.

local T = {} --@TABLE@

local upcall = Proto("upcall", "Dragonball upcall")
upcall.prefs.port = Pref.uint("Port", T.port, "The port on which the guest's upcall server listens")

local LATE_NS = T.caller_timeout_ns
local HOST_CID = 2
local OP = { CONNECT = 1, DISCONNECT = 2, CONTROL = 3, PAYLOAD = 4 }
local VIRTIO = 2
local VIRTIO_OP = { REQUEST = 1, SHUTDOWN = 4, RW = 5 }
local VSOCKMON_SIZE, VIRTIO_SIZE = 32, 44

-- Fields. `F` are those of the table of the protocol, `G` are made here.

local F, G, all = {}, {}, {}
local function declare(into, key, field)
    into[key] = field
    all[#all + 1] = field
end
for _, row in ipairs(T.fields) do
    local abbreviation = "upcall." .. row.name
    local field
    if row.kind == "bytes" then
        field = ProtoField.bytes(abbreviation, row.name, base.SPACE, row.meaning)
    elseif row.values then
        field = ProtoField[row.kind](abbreviation, row.name, base.DEC, T[row.values], nil, row.meaning)
    else
        field = ProtoField[row.kind](
            abbreviation, row.name, row.hex and base.HEX or base.DEC, nil, nil, row.meaning
        )
    end
    declare(F, row.name, field)
end
declare(G, "conn", ProtoField.uint32("upcall.conn", "Connection", base.DEC))
declare(G, "request", ProtoField.uint32("upcall.request", "Request", base.DEC))
declare(G, "op", ProtoField.string("upcall.op", "Operation"))
declare(G, "element", ProtoField.uint8("upcall.apic_id", "APIC id", base.DEC))
declare(G, "slot", ProtoField.uint8("upcall.slot", "slot", base.DEC))
declare(G, "func", ProtoField.uint8("upcall.function", "function", base.DEC))
declare(G, "errno", ProtoField.string("upcall.errno", "Error name"))
declare(G, "meaning", ProtoField.string("upcall.result", "Result"))
declare(G, "latency", ProtoField.double("upcall.latency", "Latency in seconds"))
declare(G, "latency_ns", ProtoField.uint64("upcall.latency_ns", "Latency in nanoseconds", base.DEC))
declare(G, "request_in", ProtoField.framenum("upcall.request_in", "Request in", base.NONE, frametype.REQUEST))
declare(G, "reply_in", ProtoField.framenum("upcall.reply_in", "Reply in", base.NONE, frametype.RESPONSE))
declare(G, "anomaly", ProtoField.string("upcall.anomaly", "Anomaly"))
declare(G, "service", ProtoField.uint8("upcall.service", "Service byte", base.HEX))
declare(G, "hello", ProtoField.bool("upcall.hello", "Valid CONNECT message"))
upcall.fields = all

local E = {
    magic = ProtoExpert.new("upcall.bad_magic", "Wrong magic: not executed", expert.group.MALFORMED, expert.severity.ERROR),
    unknown = ProtoExpert.new("upcall.unknown_type", "The guest has no handler for this type", expert.group.PROTOCOL, expert.severity.ERROR),
    failed = ProtoExpert.new("upcall.failed", "The guest refused", expert.group.RESPONSE_CODE, expert.severity.WARN),
    late = ProtoExpert.new("upcall.late", "Answered after the caller's time limit", expert.group.SEQUENCE, expert.severity.WARN),
    unanswered = ProtoExpert.new("upcall.unanswered", "No reply in this capture", expert.group.SEQUENCE, expert.severity.WARN),
    stale = ProtoExpert.new("upcall.stale", "Left over from an earlier reply", expert.group.SEQUENCE, expert.severity.WARN),
    pieces = ProtoExpert.new("upcall.pieces", "The guest takes each piece for a request", expert.group.SEQUENCE, expert.severity.ERROR),
    mismatch = ProtoExpert.new("upcall.mismatch", "The reply does not belong to its request", expert.group.MALFORMED, expert.severity.ERROR),
    service = ProtoExpert.new("upcall.unknown_service", "No known service", expert.group.PROTOCOL, expert.severity.ERROR),
}
local experts = {}
for _, one in pairs(E) do experts[#experts + 1] = one end
upcall.experts = experts

-- Numbers in strings of bytes, little-endian. Whole numbers up to 2^53 are exact in every Lua here.

local function unsigned(raw, offset, size)
    local value = 0
    for at = offset + size, offset + 1, -1 do
        value = value * 256 + (raw:byte(at) or 0)
    end
    return value
end

local function signed32(raw, offset)
    local value = unsigned(raw, offset, 4)
    return value >= 2147483648 and value - 4294967296 or value
end

local function op_name(msg_type)
    return T.ops[msg_type] or string.format("type_%d", msg_type)
end

local function arch_of(conn, msg_size)
    return T.arch_of_size[msg_size] or conn.arch or T.default_arch
end

-- Connections and what they remember.

local connections, results, count

function upcall.init()
    connections, results, count = {}, {}, 0
end

local ZEROS = string.rep("\0", T.message_size)

local function new_connection(server_port, server_cid, middle)
    count = count + 1
    return {
        number = count, port = server_port, cid = server_cid,
        phase = middle and "middle" or "service", from_phase = middle and "middle" or "hello",
        buffer = ZEROS, partial = "", requests = 0, open = {}, first = 1, last_ret = 0,
        middle = middle,
    }
end

local function is_magic(raw)
    return raw:sub(1, 4) == T.magic_bytes
end

local function take_requests(conn, payload, start, at_ns, frame, out)
    local size = T.message_size
    for position = start, #payload - 1, size do
        local piece = payload:sub(position + 1, position + size)
        local whole = #piece == size
        local anomalies = {}
        local number = conn.requests
        if whole then
            conn.split = nil
        else
            local fresh = is_magic(piece)
            if position == start and not fresh and conn.split and conn.split.size + #piece <= size then
                anomalies[#anomalies + 1] = "split-request"
                conn.split.size = conn.split.size + #piece
                conn.split.message.anomaly_removed = true
                if conn.split.size == size then conn.split = nil end
            elseif position > start and not fresh then
                anomalies[#anomalies + 1] = "over-long-request"
                conn.split = nil
            else
                anomalies[#anomalies + 1] = "short-request"
                conn.split = { size = #piece }
            end
        end
        conn.buffer = piece .. conn.buffer:sub(#piece + 1)
        local raw = conn.buffer
        local message = {
            what = "request", conn = conn.number, request = number, raw = raw, frame = frame,
            size = #piece, position = position, at_ns = at_ns, anomalies = anomalies,
            msg_type = unsigned(raw, T.at.msg_type, 4), magic = is_magic(raw),
            msg_size = unsigned(raw, T.at.msg_size, 4),
        }
        message.arch = arch_of(conn, message.msg_size)
        if T.arch_of_size[message.msg_size] and T.cpu_types[message.msg_type] then
            conn.arch = T.arch_of_size[message.msg_size]
        end
        if anomalies[1] == "short-request" then conn.split.message = message end
        if not message.magic then anomalies[#anomalies + 1] = "bad-magic" end
        if conn.first <= #conn.open and (#anomalies == 0 or anomalies[1] == "short-request" or anomalies[1] == "bad-magic") then
            anomalies[#anomalies + 1] = "overlapping-requests"
        end
        conn.open[#conn.open + 1] = message
        conn.requests = number + 1
        out[#out + 1] = message
    end
end

local function take_reply(conn, raw, at_ns, frame, span)
    local reply = {
        what = "reply", conn = conn.number, raw = raw, frame = frame, span = span, anomalies = {},
        msg_type = unsigned(raw, T.at.msg_type, 4), msg_size = unsigned(raw, T.at.msg_size, 4),
        magic = is_magic(raw), ret = signed32(raw, T.at.ret), arch = conn.arch or T.default_arch,
    }
    local asked = conn.open[conn.first]
    if asked then
        conn.open[conn.first] = false
        conn.first = conn.first + 1
        reply.asked, reply.request = asked, asked.request
        asked.reply = reply
        reply.latency_ns = at_ns - asked.at_ns
        local doubts = reply.anomalies
        if not asked.magic then
            doubts[1] = reply.ret == 0 and "stale-success" or "stale-error"
        elseif T.pci_types[asked.msg_type] and reply.ret < 0
            and (conn.last_ret == nil or conn.last_ret == reply.ret) then
            doubts[1] = "stale-error"
        end
        local beyond = raw:sub(T.at.reply_load + math.min(reply.msg_size, T.message_size) + 1)
        if beyond:find("[^%z]") then doubts[#doubts + 1] = "stale-load" end
        if not reply.magic or reply.msg_type ~= asked.msg_type then
            doubts[#doubts + 1] = "reply-mismatch"
        end
    end
    conn.last_ret = reply.ret
    return reply
end

local function is_hello(raw)
    return is_magic(raw) and unsigned(raw, 4, 12) == 0
end

local function to_guest(conn, payload, at_ns, frame, out)
    local start = 0
    if conn.phase == "middle" then
        conn.phase = #payload == 1 and "service" or "messages"
    end
    if conn.phase == "service" then
        local value = payload:byte(1)
        out[#out + 1] = { what = "service", conn = conn.number, value = value, position = 0 }
        conn.phase = T.services[value] and "messages" or "opaque"
        start = 1
    end
    if conn.phase == "messages" then
        take_requests(conn, payload, start, at_ns, frame, out)
    end
end

local function from_guest(conn, payload, at_ns, frame, out)
    if conn.phase == "opaque" then return end
    local size = T.message_size
    local position = -#conn.partial
    local stream = conn.partial .. payload
    if conn.from_phase == "middle" then
        local at = stream:find(T.magic_bytes, 1, true)
        if not at then
            conn.partial = stream:sub(-3)
            return
        end
        stream, position = stream:sub(at), position + at - 1
    end
    while #stream >= size do
        local raw = stream:sub(1, size)
        stream = stream:sub(size + 1)
        local hello = conn.from_phase == "hello"
            or (conn.from_phase == "middle" and is_hello(raw) and conn.first > #conn.open)
        conn.from_phase = "messages"
        if hello then
            out[#out + 1] = {
                what = "hello", conn = conn.number, raw = raw, span = position, valid = is_hello(raw),
                anomalies = {}, msg_type = unsigned(raw, T.at.msg_type, 4),
            }
        else
            out[#out + 1] = take_reply(conn, raw, at_ns, frame, position)
        end
        position = position + size
    end
    conn.partial = stream
end

-- One packet, the first time it is seen.

local function follow(header, payload, at_ns, frame)
    local key = header.src .. "-" .. header.dst
    local back = header.dst .. "-" .. header.src
    local conn = connections[key] or connections[back]
    local first = header.op == OP.CONNECT
        and (header.virtio_op == VIRTIO_OP.REQUEST or (header.virtio_op == nil and not conn))
    if first then
        connections[back] = nil
        connections[key] = new_connection(header.dst_port, header.dst_cid, false)
        connections[key].server = header.dst
        return {}
    end
    if not conn then
        if header.op == OP.DISCONNECT then return {} end
        local from_server = header.src_port == upcall.prefs.port
        conn = new_connection(
            from_server and header.src_port or header.dst_port,
            from_server and header.src_cid or header.dst_cid, true
        )
        conn.server = from_server and header.src or header.dst
        conn.last_ret = nil
        connections[key] = conn
    end
    local out = {}
    if header.op == OP.PAYLOAD and conn.port == upcall.prefs.port and conn.cid ~= HOST_CID and #payload > 0 then
        if header.dst == conn.server then
            to_guest(conn, payload, at_ns, frame, out)
        else
            from_guest(conn, payload, at_ns, frame, out)
        end
    elseif header.op == OP.DISCONNECT then
        if header.virtio_op ~= VIRTIO_OP.SHUTDOWN then
            connections[key], connections[back] = nil, nil
        end
    end
    return out
end

-- Showing.

local function show_fields(tree, rows, view, message)
    for _, row in ipairs(rows) do
        if row.count_at then
            local n = math.min(unsigned(message.raw, row.count_at, row.count_size), row.size)
            local node = tree:add(F[row.name], view(row.offset, row.size))
            for index = 0, n - 1 do node:add(G.element, view(row.offset + index, 1)) end
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
    if ret == 0 then return "ok" end
    local name = T.errnos[-ret]
    local meaning = (T.meanings[message.msg_type] or {})[ret] or ""
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
        node:add(G.op, op):set_generated()
        show_fields(node, T.header, view, message)
        local loads = T.requests[message.arch] or {}
        show_fields(node, loads[message.msg_type] or {}, view, message)
        if not T.handled[message.msg_type] then node:add_proto_expert_info(E.unknown) end
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
        node:add(G.hello, message.valid):set_generated()
        show_fields(node, T.header, view, message)
        show_fields(node, T.reply, view, message)
        return "< connect"
    end
    local text = result_text(message)
    local title = string.format("Upcall: reply to %s.%s %s: %s", message.conn, message.request or "?", op, text)
    local node = tree:add(upcall, view(0, T.message_size), title)
    node:add(G.conn, message.conn):set_generated()
    if message.request then node:add(G.request, message.request):set_generated() end
    node:add(G.op, op):set_generated()
    show_fields(node, T.header, view, message)
    show_fields(node, T.reply, view, message)
    local arch = message.asked and message.asked.arch or message.arch
    show_fields(node, (T.replies[arch] or {})[message.msg_type] or {}, view, message)
    if message.ret < 0 then
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

local function header_of(tvb)
    local length = tvb:captured_len()
    if length < VSOCKMON_SIZE then return nil end
    local header = {
        src_cid = tvb(0, 8):le_uint64():tonumber(), dst_cid = tvb(8, 8):le_uint64():tonumber(),
        src_port = tvb(16, 4):le_uint(), dst_port = tvb(20, 4):le_uint(),
        op = tvb(24, 2):le_uint(), payload = VSOCKMON_SIZE + tvb(28, 2):le_uint(),
    }
    header.src = tvb(0, 8):bytes():tohex() .. ":" .. header.src_port
    header.dst = tvb(8, 8):bytes():tohex() .. ":" .. header.dst_port
    header.stop = length
    if header.payload > length then return nil end
    if tvb(26, 2):le_uint() == VIRTIO and header.payload >= VSOCKMON_SIZE + VIRTIO_SIZE then
        header.virtio_op = tvb(62, 2):le_uint()
        -- A captured packet may be padded: the header says how long its payload is.
        if header.op == OP.PAYLOAD then
            header.stop = math.min(length, header.payload + tvb(56, 4):le_uint())
        end
    end
    return header
end

-- Since the first packet: a double holds that to the nanosecond, and not the time since 1970.
local function nanoseconds(pinfo)
    return math.floor(pinfo.rel_ts * 1e9 + 0.5)
end

function upcall.dissector(tvb, pinfo, tree)
    local captured = tvb(0, tvb:captured_len()):tvb()
    if original then original:call(captured, pinfo, tree) end
    local header = header_of(captured)
    if not header then return end
    local found = results[pinfo.number]
    if not found then
        local payload = ""
        if header.stop > header.payload then
            payload = captured:raw(header.payload, header.stop - header.payload)
        end
        found = follow(header, payload, nanoseconds(pinfo), pinfo.number)
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
