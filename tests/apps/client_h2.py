"""The `h2` library as a client, side by side streams on one connection: `python client_h2.py HOST:PORT N`.

N streams (at most 40: they fit the first window) of an upload each, all open at once, in turns; then one reset in the middle
and a PING. Exit 0 when each was answered with what it sent.
"""

import hashlib
import socket
import sys

import h2.config
import h2.connection
import h2.events


def main(target, count):
    host, port = target.split(":")
    sock = socket.create_connection((host, int(port)), timeout=20)
    config = h2.config.H2Configuration(client_side=True)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    bodies, answers, open_ = {}, {}, set()
    for number in range(int(count)):
        stream = connection.get_next_available_stream_id()
        bodies[stream] = bytes([number % 256]) * 1500
        connection.send_headers(
            stream,
            [(":method", "POST"), (":path", "/upload"), (":scheme", "http"), (":authority", "app")],
        )
        open_.add(stream)
        answers[stream] = b""
    for start in range(0, 1500, 250):
        for stream in bodies:
            connection.send_data(stream, bodies[stream][start : start + 250], end_stream=start == 1250)
    leaves = connection.get_next_available_stream_id()
    connection.send_headers(
        leaves,
        [(":method", "POST"), (":path", "/upload"), (":scheme", "http"), (":authority", "app")],
    )
    connection.send_data(leaves, b"half of it")
    connection.reset_stream(leaves)
    connection.ping(b"tidegate")
    pong = False
    while open_ or not pong:
        sock.sendall(connection.data_to_send())
        received = sock.recv(65_536)
        assert received, f"closed with {len(open_)} streams open"
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived):
                assert dict(event.headers)[b":status"] == b"200", event.headers
            elif isinstance(event, h2.events.DataReceived):
                answers[event.stream_id] += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                open_.discard(event.stream_id)
            elif isinstance(event, h2.events.PingAckReceived):
                pong = True
            else:
                bad = (h2.events.StreamReset, h2.events.ConnectionTerminated)
                assert not isinstance(event, bad), event
    for stream, body in bodies.items():
        assert answers[stream] == f"1500 {hashlib.sha256(body).hexdigest()}\n".encode()


if __name__ == "__main__":
    main(*sys.argv[1:])
