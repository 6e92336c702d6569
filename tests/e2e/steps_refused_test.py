#!/usr/bin/env python3
"""A step that is refused answers each of its calls with its own code, whoever refused it; an older
step of the same id has ended. And a stream that attaches while the server drains is told so.

Usage: steps_refused_test.py RELAYD PROTO_DIR    (needs grpcio and grpcio-tools; exit 77 without)
"""
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

try:
    import grpc
    from grpc_tools import protoc
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

RELAYD, PROTO = sys.argv[1], sys.argv[2]
STUBS = tempfile.mkdtemp()
assert protoc.main(["protoc", f"-I{PROTO}", f"--python_out={STUBS}", f"--grpc_python_out={STUBS}",
                    "relay/v1/relay.proto"]) == 0
sys.path.insert(0, STUBS)
from relay.v1 import relay_pb2 as pb  # noqa: E402
from relay.v1 import relay_pb2_grpc as rpc  # noqa: E402

HEADS, D, STEPS_MAX = 2, 16, 16
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 0, 3, 8
ROW = bytes(HEADS * D * 4)
failed = 0


def check(name, got, want):
    """One line a fact."""
    global failed
    failed += got != want
    print(f"{'ok  ' if got == want else 'FAIL'} {name}: {got!r}"
          f"{'' if got == want else f', wanted {want!r}'}")


class Stream:
    """One StreamRelayAttention: sends what it is told, reads one answer at a time."""

    def __init__(self, stub):
        self.out = queue.SimpleQueue()
        self.answers = stub.StreamRelayAttention(iter(self.out.get, None), timeout=60)

    def attach(self, session):
        """Attach; the first answer."""
        self.out.put(pb.StreamRequest(attach=pb.Attach(session=session)))
        return next(self.answers)

    def begin(self, step_id, handle, positions):
        """BeginStep of one row; its code."""
        self.out.put(pb.StreamRequest(begin=pb.BeginStep(step_id=step_id, handles=[handle],
                                                         positions=positions)))
        return next(self.answers).begun.code

    def call(self, step_id):
        """A LayerCall; code and message of its result."""
        self.out.put(pb.StreamRequest(call=pb.LayerCall(step_id=step_id, q=ROW, k=ROW, v=ROW)))
        result = next(self.answers).result
        return result.code, result.message


def ready_port(read):
    """Of the server that says so on the pipe."""
    if not select.select([read], [], [], 30)[0]:
        raise SystemExit("relayd did not become ready")
    return int(re.search(rb"port=(\d+)", os.read(read, 100)).group(1))


read_end, write_end = os.pipe()
os.set_inheritable(write_end, True)
server = subprocess.Popen(
    [RELAYD, "--listen", "127.0.0.1:0", "--threads", "1", "--ready-fd", str(write_end),
     "--log-level", "error"], pass_fds=[write_end])
os.close(write_end)
channel = grpc.insecure_channel(f"127.0.0.1:{ready_port(read_end)}")
stub = rpc.RelayAttentionStub(channel)
model = pb.ModelSpec(model_key="steps@1", kv_dtype=pb.DTYPE_F32, layer_kind=[0],
                     kinds=[pb.LayerKind(num_q_heads=HEADS, num_kv_heads=HEADS, head_dim_qk=D,
                                         head_dim_v=D)])
session = stub.OpenSession(pb.OpenSessionRequest(model=model, io_dtype=pb.DTYPE_F32)).session
handles = stub.OpenRequests(pb.OpenRequestsRequest(
    session=session, requests=[pb.OpenRequest() for _ in range(STEPS_MAX + 1)])).handles

# ---- refused by the shape of the message, after a good step of the same id ----
stream = Stream(stub)
stream.attach(session)
check("a good step", stream.begin(5, handles[0], [0]), OK)
check("the same id without positions", stream.begin(5, handles[0], []), INVALID_ARGUMENT)
code, message = stream.call(5)
check("its call's code", code, INVALID_ARGUMENT)
check("its call names the field", "positions" in message, True)
check("the same id once more", stream.begin(5, handles[0], [0]), OK)
check("its call", stream.call(5)[0], OK)

# ---- refused because too many are open ----
for i in range(1, STEPS_MAX):
    check(f"step {i + 1} of {STEPS_MAX}", stream.begin(5 + i, handles[i], [0]), OK)
check("one too many", stream.begin(50, handles[STEPS_MAX], [0]), RESOURCE_EXHAUSTED)
check("its call's code", stream.call(50)[0], RESOURCE_EXHAUSTED)

# ---- a stream that was there before the drain, and attaches during it ----
late = Stream(stub)
late_session = stub.OpenSession(pb.OpenSessionRequest(model=model, io_dtype=pb.DTYPE_F32)).session
while stub.GetServerInfo(pb.GetServerInfoRequest()).rpcs_open < 3:  # both streams, and this
    time.sleep(0.01)
server.send_signal(signal.SIGTERM)
check("the old stream is told", next(stream.answers).WhichOneof("message"), "drain")
kinds = {late.attach(late_session).WhichOneof("message"),
         next(late.answers).WhichOneof("message")}
check("the late one too", kinds, {"attached", "drain"})
stream.out.put(None)
late.out.put(None)
check("exit code", server.wait(timeout=60), 0)
sys.exit(failed != 0)
