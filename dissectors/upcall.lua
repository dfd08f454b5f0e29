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
    cut = ProtoExpert.new("upcall.cut", "Cut off by the capture's size limit: the rest is not known", expert.group.UNDECODED, expert.severity.WARN),
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
    if msg_type == nil then return "of an unknown type" end
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

-- Whether the capture has the four bytes of a message from there on.
local function knows(message, offset)
    return offset + 4 <= message.known
end

-- `length` bytes were sent; of a packet that was cut, `payload` has the first of them.
local function take_requests(conn, payload, length, start, at_ns, frame, out)
    local size = T.message_size
    for position = start, length - 1, size do
        local piece = payload:sub(position + 1, position + size)
        local sent = math.min(size, length - position)
        local whole = sent == size
        local anomalies = {}
        local number = conn.requests
        if whole then
            conn.split = nil
        else
            local fresh = is_magic(piece)
            if position == start and not fresh and conn.split and conn.split.size + sent <= size then
                anomalies[#anomalies + 1] = "split-request"
                conn.split.size = conn.split.size + sent
                conn.split.message.anomaly_removed = true
                if conn.split.size == size then conn.split = nil end
            elseif position > start and not fresh then
                anomalies[#anomalies + 1] = "over-long-request"
                conn.split = nil
            else
                anomalies[#anomalies + 1] = "short-request"
                conn.split = { size = sent }
            end
        end
        conn.buffer = piece .. conn.buffer:sub(#piece + 1)
        local raw = conn.buffer
        local message = {
            what = "request", conn = conn.number, request = number, raw = raw, frame = frame,
            size = sent, position = position, at_ns = at_ns, anomalies = anomalies,
            msg_size = unsigned(raw, T.at.msg_size, 4),
            known = #piece < sent and #piece or size,
        }
        -- What the guest did not get anew is what it had; what the capture lacks is not known.
        message.magic = message.known < 4 or is_magic(raw)
        message.msg_type = knows(message, T.at.msg_type) and unsigned(raw, T.at.msg_type, 4) or nil
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

local function take_reply(conn, raw, known, at_ns, frame, span)
    local reply = {
        what = "reply", conn = conn.number, raw = raw, frame = frame, span = span, anomalies = {},
        msg_size = unsigned(raw, T.at.msg_size, 4), known = known,
        magic = known < 4 or is_magic(raw), arch = conn.arch or T.default_arch,
    }
    reply.msg_type = knows(reply, T.at.msg_type) and unsigned(raw, T.at.msg_type, 4) or nil
    reply.ret = knows(reply, T.at.ret) and signed32(raw, T.at.ret) or nil
    local asked = conn.open[conn.first]
    if asked then
        conn.open[conn.first] = false
        conn.first = conn.first + 1
        reply.asked, reply.request = asked, asked.request
        asked.reply = reply
        reply.latency_ns = at_ns - asked.at_ns
        local doubts = reply.anomalies
        if reply.ret == nil then
            -- Nothing can be said of a result that the capture lacks.
        elseif not asked.magic then
            doubts[1] = reply.ret == 0 and "stale-success" or "stale-error"
        elseif T.pci_types[asked.msg_type] and reply.ret < 0
            and (conn.last_ret == nil or conn.last_ret == reply.ret) then
            doubts[1] = "stale-error"
        end
        local beyond = raw:sub(T.at.reply_load + math.min(reply.msg_size, T.message_size) + 1)
        if beyond:find("[^\0]") then doubts[#doubts + 1] = "stale-load" end
        local other = reply.msg_type and asked.msg_type and reply.msg_type ~= asked.msg_type
        if not reply.magic or other then
            doubts[#doubts + 1] = "reply-mismatch"
        end
    end
    conn.last_ret = reply.ret
    return reply
end

local function is_hello(raw)
    return is_magic(raw) and unsigned(raw, 4, 12) == 0
end

local function to_guest(conn, payload, length, at_ns, frame, out)
    local start = 0
    if conn.phase == "middle" then
        conn.phase = length == 1 and "service" or "messages"
    end
    if conn.phase == "service" then
        local value = payload:byte(1)
        if not value then
            conn.phase = "opaque"
            return
        end
        out[#out + 1] = { what = "service", conn = conn.number, value = value, position = 0 }
        conn.phase = T.services[value] and "messages" or "opaque"
        start = 1
    end
    if conn.phase == "messages" then
        take_requests(conn, payload, length, start, at_ns, frame, out)
    end
end

local function move_hole(conn, bytes)
    local hole = conn.hole
    if not hole then return end
    hole.first, hole.stop = hole.first - bytes, hole.stop - bytes
    if hole.stop <= 0 then conn.hole = nil end
end

local function from_guest(conn, payload, length, at_ns, frame, out)
    if conn.phase == "opaque" then return end
    local size = T.message_size
    local position = -#conn.partial
    local stream = conn.partial .. payload
    -- Of packets that were cut, `conn.hole` says which bytes of the stream are not known.
    if length > #payload then
        local hole = conn.hole or { first = #stream }
        stream = stream .. string.rep("\0", length - #payload)
        hole.stop = #stream
        conn.hole = hole
    end
    if conn.from_phase == "middle" then
        local at = stream:find(T.magic_bytes, 1, true)
        if not at then
            conn.partial = stream:sub(-3)
            conn.hole = nil
            return
        end
        stream, position = stream:sub(at), position + at - 1
        move_hole(conn, at - 1)
    end
    while #stream >= size do
        local raw = stream:sub(1, size)
        local known = conn.hole and math.max(0, math.min(size, conn.hole.first)) or size
        stream = stream:sub(size + 1)
        move_hole(conn, size)
        local hello = conn.from_phase == "hello"
            or (conn.from_phase == "middle" and is_hello(raw) and conn.first > #conn.open)
        conn.from_phase = "messages"
        if hello then
            out[#out + 1] = {
                what = "hello", conn = conn.number, raw = raw, span = position, valid = is_hello(raw),
                anomalies = {}, msg_type = unsigned(raw, T.at.msg_type, 4), known = known,
            }
        else
            out[#out + 1] = take_reply(conn, raw, known, at_ns, frame, position)
        end
        position = position + size
    end
    conn.partial = stream
end

-- One packet, the first time it is seen.

local function follow(header, payload, length, at_ns, frame)
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
    if header.op == OP.PAYLOAD and conn.port == upcall.prefs.port and conn.cid ~= HOST_CID and length > 0 then
        if header.dst == conn.server then
            to_guest(conn, payload, length, at_ns, frame, out)
        else
            from_guest(conn, payload, length, at_ns, frame, out)
        end
    elseif header.op == OP.DISCONNECT then
        if header.virtio_op ~= VIRTIO_OP.SHUTDOWN then
            connections[key], connections[back] = nil, nil
        end
    end
    return out
end
