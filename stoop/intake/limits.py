"""Every limit of the intakes, with its reason. Sizes are bytes, times are seconds."""

from __future__ import annotations

import msgspec

from stoop.alert import MAX_ALERT

# An alert is 1.4 KiB at the median and 2.7 KiB at most in real feeds; arguments may reach 4 KiB each. Talon's limit
# (NATS) is 1 MiB as well, and libcurl asks `Expect: 100-continue` from there on.
ALERT_BYTES = MAX_ALERT

# Falco sends about 200 bytes of header. 16 KiB is what most servers allow.
HEADER_BYTES = 16 * 1024

# One Falco a node needs one connection, a restart two for a moment. 256 leaves room for many senders and keeps the
# descriptors below the usual soft limit of 1,024.
CONNECTIONS = 256

# Connections that the kernel keeps until they are accepted. More would only hide that the agent does not keep up.
BACKLOG = 128

# A request or a line that has begun must be whole by then. Falco writes each in one send.
SLOW_SECONDS = 10.0

# The sender must take its answers by then: each is 38 bytes, and the kernel buffers thousands.
WRITE_SECONDS = 10.0

# An HTTP connection that says nothing between two requests is closed. libcurl itself does not use one again that
# was idle for 118 s, so Falco never notices. A line feed may be silent for ever: a quiet node has no alerts.
IDLE_SECONDS = 3600.0

# How often deadlines are looked at. One look for all connections costs less than one timer a read.
SWEEP_SECONDS = 1.0

# A sender that was refused may still be writing. What it sends is read and thrown away for so long, because
# closing a socket with unread bytes resets it and the sender would lose the answer (RFC 9112, section 9.6).
LINGER_SECONDS = 1.0

# One read. About 11 real alerts: they are decoded in some 60 µs before the first of them is acted on.
READ_BYTES = 16 * 1024

# After so much reading without a pause the other tasks get their turn.
TURN_BYTES = 64 * 1024
TURN_NS = 1_000_000

# How long accepting pauses when the process has no descriptor left (EMFILE): long enough not to spin.
NO_DESCRIPTOR_SECONDS = 0.2

# How often the token's file is asked whether it changed. stat(2) on each request would cost more than the check.
TOKEN_SECONDS = 1.0

# A token's file holds one line. Whatever is larger is another file.
TOKEN_BYTES = 4096

# The kernel limit of a unix socket's path (unix(7): sun_path), without the closing zero byte.
SOCKET_PATH_BYTES = 107

# Bytes before the offset of a followed file that are hashed to see whether it is still the same content.
FINGERPRINT_BYTES = 1024

# A file that is met for the first time is read from its beginning, but no further back than this: 16 MiB are
# 10,000 alerts or more, and what is older than `max_alert_age` expires anyhow.
FIRST_READ_BYTES = 16 * 1024 * 1024

# Without a word from inotify a followed file is looked at this often: a safety net (network file systems).
POLL_SECONDS = 2.0

# Batches of a followed file whose outcome is not recorded yet. Beyond it new ones are counted with the last.
UNSETTLED_BATCHES = 1024


class Limits(msgspec.Struct, frozen=True):
    """The limits that a test may want smaller. Everything else is a constant above."""

    alert_bytes: int = ALERT_BYTES
    header_bytes: int = HEADER_BYTES
    connections: int = CONNECTIONS
    slow_seconds: float = SLOW_SECONDS
    write_seconds: float = WRITE_SECONDS
    idle_seconds: float = IDLE_SECONDS
    sweep_seconds: float = SWEEP_SECONDS
    linger_seconds: float = LINGER_SECONDS
    token_seconds: float = TOKEN_SECONDS
    poll_seconds: float = POLL_SECONDS
    first_read_bytes: int = FIRST_READ_BYTES


LIMITS = Limits()
