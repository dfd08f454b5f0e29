"""The rows of what Dragonball's upcall client and its vCPU manager say.

From the sources of Kata Containers 4.1. Filled-in parts are in Rust's `Debug` and `Display` forms,
which differ between releases: words decide, and numbers are read where they stand.
"""

from __future__ import annotations

import re
from typing import Final

from .. import codes
from .meaning import Meaning, Speaker

_C: Final = Speaker.CLIENT
_V: Final = Speaker.CPUS

INIT: Final = Meaning(
    _C, "VM upcall init", "VM upcall init",
    "a VM begins; nothing about the guest yet", "VM upcall init",
    pattern=re.compile(r"VM upcall init(?! failed)"),
)  # fmt: skip
CLIENT_INIT: Final = Meaning(
    _C, "upcall client init success", "upcall client init success",
    "the client exists; nothing about the guest yet", "upcall client init success",
)  # fmt: skip
INIT_FAILED: Final = Meaning(
    _C, "VM upcall init failed", "VM upcall init failed, no support hotplug: {error}",
    "there will be no channel, and the start of the VM fails with it",
    "VM upcall init failed, no support hotplug: the upcall client needs a virtio-vsock device for "
    "communication",
    codes=(codes.NO_UPCALL,),
)  # fmt: skip
SERVER: Final = Meaning(
    _C, "upcall connect server success", "upcall connect server success",
    "OK came; the service byte was sent", "upcall connect server success", "3.2",
)  # fmt: skip
SERVICE: Final = Meaning(
    _C, "upcall connect service success", "upcall connect service success",
    "the channel is ready", "upcall connect service success", "3.2",
)  # fmt: skip
NOT_OK: Final = Meaning(
    _C, "expect ok, but received", "upcall connect server check failed, … expect ok, but received "
    "{characters}",
    "something else than OK came for CONNECT",
    "upcall connect server check failed, upcall server connect error: expect ok, but received ER",
    "3.2", (codes.NOT_OK,), re.compile(r"expect ok, but received (.{0,20})"),
)  # fmt: skip
REFUSED: Final = Meaning(
    _C, "upcall connect server check failed", "upcall connect server check failed, {error}",
    "one CONNECT was refused, or not answered after a restore",
    "upcall connect server check failed, upcall server connect error: connection reset",
    "3.2", (codes.NO_LISTENER, codes.CONNECT_REFUSED_LOOP, codes.CONNECT_UNANSWERED),
    re.compile(r"upcall connect server check failed(?!.{0,120}expect ok)(.{0,160})"),
)  # fmt: skip
RECONNECT: Final = Meaning(
    _C, "upcall reconnect server...", "upcall reconnect server...",
    "another try to connect, 10 ms after the last", "upcall reconnect server...", "3.2",
)  # fmt: skip
START_FAILED: Final = Meaning(
    _C, "upcall connect service start failed", "upcall connect service start failed {error}",
    "the stream ended between OK and the service byte",
    "upcall connect service start failed upcall service connect error: broken pipe",
    "3.2", (codes.NO_HELLO,),
)  # fmt: skip
BAD_HELLO: Final = Meaning(
    _C, "received invalid upcall message", "upcall connect service check failed, received invalid "
    "upcall message: … expect msg_type 0, but received {number}",
    "the guest's first message is no CONNECT message; 0 when magic, size or flags were wrong",
    "upcall connect service check failed, received invalid upcall message: upcall device manager "
    "expect msg_type 0, but received 5",
    "3.2", (codes.BAD_HELLO,),
    re.compile(r"received invalid upcall message(?:.{0,120}but received (\d{1,10}))?"),
)  # fmt: skip
NO_HELLO: Final = Meaning(
    _C, "upcall connect service check failed", "upcall connect service check failed, upcall "
    "service connect error: {error}",
    "OK and the service byte, but no CONNECT message",
    "upcall connect service check failed, upcall service connect error: connection reset",
    "3.2", (codes.NO_HELLO, codes.UNKNOWN_SERVICE),
    re.compile(r"upcall connect service check failed(?!.{0,20}received invalid)"),
)  # fmt: skip
RESET: Final = Meaning(
    _C, "upcall response failed", "upcall response failed {error}",
    "the stream broke with a request open; the client reconnects",
    "upcall response failed upcall get response error: connection reset", "3.2",
    (codes.RESET_WHILE_BUSY,),
)  # fmt: skip
IDLE_LOST: Final = Meaning(
    _C, "we should get message from event handler when connection state is",
    "we should get message from event handler when connection state is `ServiceConnected`",
    "something happened on an idle channel, mostly that its peer has gone; printed without end, "
    "and no reconnect",
    "we should get message from event handler when connection state is `ServiceConnected`",
    "3.2", (codes.IDLE_CHANNEL_LOST,),
)  # fmt: skip
GAVE_UP: Final = Meaning(
    _C, "max reconnect time exceed", "upcall server's max reconnect time exceed",
    "given up for good, after 501 tries", "upcall server's max reconnect time exceed",
    "3.2", (codes.CONNECT_REFUSED_LOOP,),
)  # fmt: skip
NOT_READY: Final = Meaning(
    _C, "UpcallServerNotReady|pcall not ready|pcall client is not ready|pcall server is not ready|"
    "pcall server not ready",
    "UpcallServerNotReady; Upcall not ready, can't hotplug device.; the upcall client "
    "is not ready",
    "never connected, reconnecting, busy, or given up: the lines before it tell which",
    "failed to do_resize_vcpus on new_vcpus=2: vmm action error: UpcallServerNotReady",
    codes=(codes.NOT_READY,),
    pattern=re.compile(
        r"UpcallServerNotReady|[Uu]pcall (?:server |client )?(?:is )?not ready"
    ),
)  # fmt: skip
SEND_FAILED: Final = Meaning(
    _C, "SendRequest(|upcall send request error",
    "HotplugDevice(SendRequest(..)), ResizeVcpu(Upcall(SendRequest(..))), upcall send "
    "request error: {error}",
    "the stream was dead when the request was written",
    "failed to hot-add pci virtio block device drive-4f2, "
    "HotplugDevice(SendRequest(Kind(ConnectionReset)))",
    "3.2", (codes.IDLE_CHANNEL_LOST,), re.compile(r"SendRequest\(|upcall send request error"),
)  # fmt: skip
OTHER_CLIENT: Final = Meaning(
    _C, "UpcallIsBusy|UpcallIsNotConnected|upcall is busy now|upcall is not connected",
    "UpcallIsBusy, UpcallIsNotConnected, upcall is busy now, upcall is not connected",
    "Kata does not log this, because it asks for readiness first: it is another client's",
    "upcall is busy now", "3.2", (codes.NOT_READY,),
    re.compile(r"UpcallIsBusy|UpcallIsNotConnected|upcall is busy now|upcall is not connected"),
)  # fmt: skip
RESIZE: Final = Meaning(
    _V, "resize vcpu: now", "resize vcpu: now: {a}, desire: {b}",
    "the channel is ready and no resize is open; ADD_CPU or DEL_CPU of the difference follows",
    "resize vcpu: now: 1, desire: 3",
    pattern=re.compile(r"resize vcpu: now: ?(\d{1,6}), ?desire: ?(\d{1,6})"),
)  # fmt: skip
NO_RESIZE: Final = Meaning(
    _V, "no need to resize", "resize vcpu: no need to resize",
    "nothing is sent; after a failed send it is misleading, as the vCPU threads run already",
    "resize vcpu: no need to resize",
)  # fmt: skip
RESIZING: Final = Meaning(
    _V, "resize vcpu: ", "resize vcpu: add; resize vcpu: delete",
    "which of the two it is", "resize vcpu: add",
    pattern=re.compile(r"resize vcpu: (add|delete)"),
)  # fmt: skip
ROLLBACK: Final = Meaning(
    _V, "activate vcpu error|vCPU get tid error",
    "activate vcpu error, rollback! {error}; vCPU get tid error!",
    "vCPU threads failed before any request", "activate vcpu error, rollback! VcpuFd",
    codes=(codes.HOST_SIDE_FAILURE,),
    pattern=re.compile(r"activate vcpu error, rollback|vCPU get tid error"),
)  # fmt: skip
VCPU_DIED: Final = Meaning(
    _V, "run_emulation failed", "vcpu: {n}, run_emulation failed: {error}",
    "a vCPU's thread died; it can be the cause of UP201",
    "vcpu: 1, run_emulation failed: VcpuUnhandledKvmExit", codes=(codes.VCPU_NOT_STARTED,),
)  # fmt: skip
CPU_DONE: Final = Meaning(
    _V, "get vcpu event, cpu_index", "get vcpu event, cpu_index {n} success Success",
    "the guest did it; with n = 0 the stream broke instead, which is counted as success",
    "get vcpu event, cpu_index 2 success Success", codes=(codes.LATE_REPLY, codes.RESET_WHILE_BUSY),
    pattern=re.compile(r"get vcpu event, cpu_index:? ?(\d{1,10}),? success:? ?Success"),
)  # fmt: skip
CPU_REFUSED: Final = Meaning(
    _V, "get vcpu event, cpu_index", "get vcpu event, cpu_index {n} success Failed",
    "the guest refused; n is left over from an earlier answer",
    "get vcpu event, cpu_index 0 success Failed", codes=(codes.RESIZE_WEDGED,),
    pattern=re.compile(r"get vcpu event, cpu_index:? ?\d{1,10},? success:? ?Fail"),
)  # fmt: skip
CPU_LATE: Final = Meaning(
    _V, "cpu sync action send to closed channel", "cpu sync action send to closed channel {error}",
    "the guest's success came after its caller had gone",
    "cpu sync action send to closed channel sending on a closed channel", codes=(codes.LATE_REPLY,),
)  # fmt: skip
EXITING: Final = Meaning(
    _V, "exiting vcpus", "exiting vcpus {list}",
    "threads are stopped, after an unplug or a reset that was counted as one",
    "exiting vcpus [3, 2]",
)  # fmt: skip
VCPU_STARTED: Final = Meaning(
    _V, "starting vcpu|is running", "starting vcpu {n}; vcpu {n} is running",
    "the thread exists; it begins paused, so this does not prove that the vCPU ran",
    "starting vcpu 1", pattern=re.compile(r"starting vcpu \d{1,6}|vcpu \d{1,6} is running"),
)  # fmt: skip
WEDGED: Final = Meaning(
    _V, "VcpuIsHotplugging|vcpu is in hotplug", "VcpuIsHotplugging, vcpu is in hotplug process",
    "refused because of an earlier resize that has not ended",
    "failed to do_resize_vcpus on new_vcpus=4: vmm action error: ResizeVcpu(VcpuIsHotplugging)",
    codes=(codes.RESIZE_WEDGED,),
    pattern=re.compile(r"VcpuIsHotplugging|vcpu is in hotplug process"),
)  # fmt: skip
CPU_FORBIDDEN: Final = Meaning(
    _V, "ExpectedVcpuExceedMax|Vcpu0CanNotBeRemoved|LackRemovableVcpus|ResizeVcpu(Vcpu(",
    "ExpectedVcpuExceedMax, Vcpu0CanNotBeRemoved, LackRemovableVcpus(..), "
    "UpcallClientMissing, ResizeVcpu(Vcpu(..))",
    "refused before any request",
    "failed to do_resize_vcpus on new_vcpus=999: vmm action error: "
    "ResizeVcpu(ExpectedVcpuExceedMax)",
    codes=(codes.HOST_SIDE_FAILURE,),
    pattern=re.compile(
        r"ExpectedVcpuExceedMax|Vcpu0CanNotBeRemoved|LackRemovableVcpus|ResizeVcpu\(Vcpu\("
    ),
)  # fmt: skip
CLIENT_MISSING: Final = Meaning(
    _V, "UpcallClientMissing", "UpcallClientMissing", "refused before any request: no client",
    "vmm action error: ResizeVcpu(UpcallClientMissing)", codes=(codes.HOST_SIDE_FAILURE,),
)  # fmt: skip
NO_UPCALL_BUILT: Final = Meaning(
    _V, "only support cpu resize through upcall", "We only support cpu resize through upcall "
    "server …",
    "a VMM that was built without upcall drops the resize and calls it a success",
    "We only support cpu resize through upcall server in the guest kernel now, please enable "
    "dbs-upcall feature.", "3.1", (codes.HOST_SIDE_FAILURE,),
)  # fmt: skip

ROWS: Final = (
    INIT_FAILED, INIT, CLIENT_INIT, SERVER, SERVICE, NOT_OK, REFUSED, RECONNECT, START_FAILED,
    BAD_HELLO, NO_HELLO, RESET, IDLE_LOST, GAVE_UP, NOT_READY, SEND_FAILED, OTHER_CLIENT, RESIZE,
    RESIZING, NO_RESIZE, ROLLBACK, VCPU_DIED, CPU_DONE, CPU_REFUSED, CPU_LATE, EXITING,
    VCPU_STARTED, WEDGED, CPU_FORBIDDEN, CLIENT_MISSING, NO_UPCALL_BUILT,
)  # fmt: skip
"""In the order in which a line's rows are told."""
