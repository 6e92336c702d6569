#!/usr/bin/env python3
"""Bad input through the wire: each gets its clear status, the server's counters return to where they
were, and the next good call gives the same bits as before.

Usage: bad_input_test.py RELAYD PROTO_DIR    (needs grpcio and grpcio-tools; exit 77 without them)
"""
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile

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

Code = grpc.StatusCode
HQ, HKV, D, S, LAYERS = 4, 2, 16, 37, 2
ROW_Q, ROW_KV = HQ * D * 4, HKV * D * 4
passed = failed = 0


class Server:
    """relayd with small limits, on a free port."""

    def __init__(self):
        read, write = os.pipe()
        os.set_inheritable(write, True)
        self.process = subprocess.Popen(
            [RELAYD, "--listen", "127.0.0.1:0", "--backend", "cpu", "--threads", "1",
             "--ready-fd", str(write), "--log-level", "error", "--prompt-bytes-max", "1M",
             "--request-bytes-max", "256K", "--message-bytes-max", "2M", "--uploads-max", "3",
             "--chunk-bytes-max", "64K"], pass_fds=[write])
        os.close(write)
        if not select.select([read], [], [], 30)[0]:
            raise SystemExit("relayd did not become ready")
        self.port = int(re.search(rb"port=(\d+)", os.read(read, 100)).group(1))
        os.close(read)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def floats(seed, count):
    """count float32 in [-1, 1), a fixed function of seed, as bytes."""
    state, out = seed * 2654435761 % 2**32 or 1, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(state / 2**31 - 1)
    return struct.pack(f"<{count}f", *out)


def model(**changes):
    """The test's model: two full layers, float32."""
    spec = dict(model_key="bad-input@1", kv_dtype=pb.DTYPE_F32, layer_kind=[0] * LAYERS,
                kinds=[pb.LayerKind(num_q_heads=HQ, num_kv_heads=HKV, head_dim_qk=D, head_dim_v=D)])
    spec.update(changes)
    return pb.ModelSpec(**spec)


def chunk(layer, begin, count, **changes):
    """K/V of tokens [begin, +count) of a layer."""
    fields = dict(layer=layer, token_begin=begin, token_count=count,
                  k=floats(layer * 1000 + begin + 1, count * HKV * D),
                  v=floats(layer * 1000 + begin + 500, count * HKV * D))
    fields.update(changes)
    return pb.RegisterPromptRequest(chunk=pb.KvChunk(**fields))


def header(prompt_id, **changes):
    """The first message of an upload."""
    fields = dict(prompt_id=prompt_id, model=model(), num_tokens=S)
    fields.update(changes)
    return pb.RegisterPromptRequest(header=pb.RegisterHeader(**fields))


def register(prompt_id, **changes):
    """A whole upload; the Prompt."""
    messages = [header(prompt_id, **changes)] + [chunk(layer, 0, S) for layer in range(LAYERS)]
    return list(stub.RegisterPrompt(iter(messages)))[-1].prompt


def counters():
    """What the server holds."""
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    return (info.sessions, info.requests, info.prompts, info.uploads, info.calls_in_flight,
            [(m.prompt_bytes_used, m.request_bytes_used) for m in info.memory])


def attend(**changes):
    """One good call, changed."""
    fields = dict(session=session, step_id=10, layer=1, handles=[handle], q_lens=[2],
                  positions=[0], want_lse=True, q=floats(7, 2 * HQ * D),
                  k=floats(8, 2 * HKV * D), v=floats(9, 2 * HKV * D))
    fields.update(changes)
    return pb.BatchedRelayAttentionRequest(**fields)


def good():
    """The bits of the good call."""
    answer = stub.BatchedRelayAttention(attend())
    return answer.out + answer.lse


def check(name, want, call, text=""):
    """call() must fail with code `want` and a message with `text`, and change nothing."""
    global passed, failed
    problem = ""
    try:
        result = call()
        problem = f"went through: {str(result)[:200]}"
    except grpc.RpcError as error:
        if error.code() != want or text not in (error.details() or ""):
            problem = f"{error.code()} {error.details()!r}, wanted {want} with {text!r}"
        elif re.search(r"0x[0-9a-f]{6,}|/(home|usr|tmp|root)/", error.details() or ""):
            problem = f"the message names an address or a path: {error.details()!r}"
    if not problem and counters() != before:
        problem = f"counters {before} became {counters()}"
    if not problem and good() != bits:
        problem = "the good call's bits changed"
    passed, failed = passed + (not problem), failed + bool(problem)
    print(f"{'FAIL' if problem else 'ok  '} {name} {problem}")


def raw(method, data, kind="unary_unary"):
    """Sends bytes as they are."""
    call = getattr(channel, kind)(f"/relay.v1.RelayAttention/{method}")
    if kind == "unary_unary":
        return call(data, timeout=20)
    return list(call(iter([data]), timeout=20))


server = Server()
channel = grpc.insecure_channel(f"127.0.0.1:{server.port}",
                                options=[("grpc.max_send_message_length", -1)])
stub = rpc.RelayAttentionStub(channel)
register("p")
opened = stub.OpenSession(pb.OpenSessionRequest(model=model(), io_dtype=pb.DTYPE_F32,
                                                lease_ms=600000))
session = opened.session
other = stub.OpenSession(pb.OpenSessionRequest(model=model(), io_dtype=pb.DTYPE_F32,
                                               lease_ms=600000)).session


def open_requests(of_session, **request):
    """One request's handle."""
    return stub.OpenRequests(pb.OpenRequestsRequest(
        session=of_session, requests=[pb.OpenRequest(**request)])).handles[0]


handle = open_requests(session, prompt_id="p")
foreign = open_requests(other, prompt_id="p")
bits = good()
before = counters()
unary = stub.BatchedRelayAttention

# ---- calls ----
check("layer out of range", Code.INVALID_ARGUMENT, lambda: unary(attend(layer=2)), "layer 2")
check("q too short", Code.INVALID_ARGUMENT, lambda: unary(attend(q=b"1234")),
      f"expected {2 * ROW_Q} bytes, got 4")
check("k too long", Code.INVALID_ARGUMENT, lambda: unary(attend(k=bytes(2 * ROW_KV + 4))),
      f"expected {2 * ROW_KV} bytes, got {2 * ROW_KV + 4}")
check("k without v", Code.INVALID_ARGUMENT, lambda: unary(attend(v=b"")), "v")
check("k with PROMPT_ONLY", Code.INVALID_ARGUMENT,
      lambda: unary(attend(part=pb.PART_PROMPT_ONLY)), "PROMPT_ONLY")
check("no entries", Code.INVALID_ARGUMENT,
      lambda: unary(attend(handles=[], q_lens=[], positions=[], q=b"", k=b"", v=b"")))
check("positions missing", Code.INVALID_ARGUMENT, lambda: unary(attend(positions=[])),
      "positions: expected 1 values, got 0")
check("zero rows", Code.INVALID_ARGUMENT, lambda: unary(attend(q_lens=[0])))
check("unknown handle", Code.NOT_FOUND, lambda: unary(attend(handles=[handle + 12345])))
check("another session's handle", Code.NOT_FOUND, lambda: unary(attend(handles=[foreign])))
check("duplicate handle", Code.INVALID_ARGUMENT,
      lambda: unary(attend(handles=[handle, handle], q_lens=[1, 1], positions=[0, 1])), "twice")
check("position gap", Code.FAILED_PRECONDITION, lambda: unary(attend(positions=[5])), "gap")
check("nothing there to read", Code.FAILED_PRECONDITION,
      lambda: unary(attend(positions=[1], k=b"", v=b"")))
check("older step_id", Code.ABORTED, lambda: unary(attend(step_id=9)), "older")
check("unknown session", Code.NOT_FOUND, lambda: unary(attend(session=b"x" * 16)))
check("short session", Code.INVALID_ARGUMENT, lambda: unary(attend(session=b"x" * 15)))
check("unknown part", Code.UNIMPLEMENTED, lambda: unary(attend(part=9)), "part")
check("unknown sharing", Code.UNIMPLEMENTED, lambda: unary(attend(sharing=9)), "sharing")
check("unknown field", Code.UNIMPLEMENTED,
      lambda: raw("BatchedRelayAttention", attend().SerializeToString() + b"\xa0\x06\x01"), "100")
check("oversize message", Code.RESOURCE_EXHAUSTED, lambda: unary(attend(q=bytes(3 << 20))))
small = stub.OpenSession(pb.OpenSessionRequest(model=model(), io_dtype=pb.DTYPE_F32,
                                               response_bytes_max=300, lease_ms=600000)).session
small_handle = open_requests(small, prompt_id="p")
before = counters()
check("response over the limit", Code.INVALID_ARGUMENT,
      lambda: unary(attend(session=small, handles=[small_handle])), "response_bytes_max")

# ---- truncated and hostile bytes ----
message = attend().SerializeToString()


def truncations():
    """Every prefix of the good call: refused, never taken for the whole."""
    codes = set()
    for size in range(len(message)):
        try:
            raw("BatchedRelayAttention", message[:size])
            raise AssertionError(f"a prefix of {size} bytes went through")
        except grpc.RpcError as error:
            codes.add(error.code())
            last = error
    assert codes <= {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION}, codes
    raise last


check("truncated at every byte", Code.INVALID_ARGUMENT, truncations)
open_bytes = pb.OpenSessionRequest(model=model(), io_dtype=pb.DTYPE_F32).SerializeToString()


def truncated_opens():
    """Every prefix of OpenSession that is malformed."""
    last = None
    for size in range(1, len(open_bytes)):
        try:
            answer = raw("OpenSession", open_bytes[:size])
            token = pb.OpenSessionResponse.FromString(answer).session
            stub.CloseSession(pb.CloseSessionRequest(session=token))
        except grpc.RpcError as error:
            assert error.code() == Code.INVALID_ARGUMENT, error
            last = error
    raise last


check("truncated OpenSession", Code.INVALID_ARGUMENT, truncated_opens)
check("nested bomb", Code.INVALID_ARGUMENT,
      lambda: raw("OpenSession", b"\x0a\xff\x7f" + b"\x12\xfd\x7f" * 5000))
check("merged submessages", Code.INVALID_ARGUMENT, lambda: raw("OpenSession", b"\x0a\x00" * 100000))
check("empty submessages", Code.INVALID_ARGUMENT,
      lambda: raw("OpenSession", b"\x0a\x90\xf1\x04" + b"\x12\x00" * 40008))
check("unknown-field bomb", Code.UNIMPLEMENTED, lambda: raw("OpenSession", b"\xa0\x06\x01" * 100000))
check("varint without end", Code.INVALID_ARGUMENT, lambda: raw("OpenSession", b"\x10" + b"\xff" * 30))

# ---- sessions and requests ----
check("unknown feature", Code.UNIMPLEMENTED, lambda: stub.OpenSession(
    pb.OpenSessionRequest(model=model(), io_dtype=pb.DTYPE_F32, features=["telepathy"])),
      "telepathy")
check("other description under the key", Code.FAILED_PRECONDITION, lambda: stub.OpenSession(
    pb.OpenSessionRequest(model=model(kv_dtype=pb.DTYPE_BF16), io_dtype=pb.DTYPE_F32)))
check("a head dim that is no multiple of 8", Code.INVALID_ARGUMENT, lambda: stub.OpenSession(
    pb.OpenSessionRequest(io_dtype=pb.DTYPE_F32, model=model(model_key="odd", kinds=[pb.LayerKind(
        num_q_heads=4, num_kv_heads=2, head_dim_qk=12, head_dim_v=16)]))))
check("unknown prompt", Code.NOT_FOUND, lambda: open_requests(session, prompt_id="nobody"))
check("stale generation", Code.ABORTED,
      lambda: open_requests(session, prompt_id="p", generation=12345))
check("other variant", Code.FAILED_PRECONDITION,
      lambda: open_requests(session, prompt_id="p", variant="lora-1"), "lora-1")
check("reservation over the quota", Code.RESOURCE_EXHAUSTED,
      lambda: open_requests(session, prompt_id="p", tokens_reserved=4000))
check("no such rpc", Code.UNIMPLEMENTED, lambda: raw("ForkRequests", b""))

# ---- uploads ----
uploads = stub.RegisterPrompt
check("bad id bytes", Code.INVALID_ARGUMENT, lambda: list(uploads(iter([header("a b")]))))
check("NUL in an id", Code.INVALID_ARGUMENT, lambda: list(uploads(iter([header("ad\0zz")]))))
check("long id", Code.INVALID_ARGUMENT, lambda: list(uploads(iter([header("x" * 129)]))))
check("no header", Code.INVALID_ARGUMENT, lambda: list(uploads(iter([chunk(0, 0, S)]))))
check("an upload that stops half-way", Code.FAILED_PRECONDITION,
      lambda: list(uploads(iter([header("half"), chunk(0, 0, 20)]))))
check("a chunk past the end", Code.INVALID_ARGUMENT,
      lambda: list(uploads(iter([header("long"), chunk(0, 0, S + 1)]))))
check("a gap", Code.FAILED_PRECONDITION,
      lambda: list(uploads(iter([header("gap"), chunk(0, 0, 5), chunk(0, 6, 5)]))))
check("wrong chunk bytes", Code.INVALID_ARGUMENT,
      lambda: list(uploads(iter([header("short"), chunk(0, 0, 5, k=b"1234")]))), "got 4")
check("a checksum that lies", Code.DATA_LOSS,
      lambda: list(uploads(iter([header("liar"), chunk(0, 0, 5, xxh64=1)]))))
check("other content under the id", Code.ALREADY_EXISTS, lambda: list(uploads(iter(
    [header("p")] + [chunk(layer, 0, S, v=floats(1, S * HKV * D)) for layer in range(LAYERS)]))))
check("prompt quota", Code.RESOURCE_EXHAUSTED,
      lambda: list(uploads(iter([header("big", num_tokens=4000)]))))
check("oversize chunk", Code.INVALID_ARGUMENT, lambda: list(uploads(iter(
    [header("fat", num_tokens=600), chunk(0, 0, 600)]))))
call = uploads(iter([header("cut"), chunk(0, 0, 10)]))
next(call)
call.cancel()
for _ in range(200):
    if counters() == before:
        break
    signal.sigtimedwait([], 0.05)
check("a stream that breaks leaves nothing", Code.NOT_FOUND,
      lambda: stub.GetPrompt(pb.GetPromptRequest(model_key="bad-input@1", prompt_id="cut")))


def append(**changes):
    """AppendKv of three tokens to the good request."""
    fields = dict(layer=0, token_begin=0, token_count=3, k=floats(1, 3 * HKV * D),
                  v=floats(2, 3 * HKV * D))
    fields.update(changes)
    return stub.AppendKv(iter([
        pb.AppendKvRequest(header=pb.AppendKvHeader(session=session, handle=handle)),
        pb.AppendKvRequest(chunk=pb.KvChunk(**fields))]))


check("append with a gap", Code.FAILED_PRECONDITION, lambda: append(token_begin=5))

# ---- a doomed prompt: who has it goes on, nobody else gets it ----
register("q")
held = open_requests(session, prompt_id="q")
stub.UnregisterPrompt(pb.UnregisterPromptRequest(model_key="bad-input@1", prompt_id="q"))
first = unary(attend(handles=[held], k=b"", v=b"", part=pb.PART_PROMPT_ONLY)).out
before = counters()
check("doomed prompt", Code.NOT_FOUND, lambda: open_requests(session, prompt_id="q"))
assert unary(attend(handles=[held], k=b"", v=b"", part=pb.PART_PROMPT_ONLY)).out == first
stub.CloseRequests(pb.CloseRequestsRequest(session=session, handles=[held]))
after = counters()
ok = after[2] == before[2] - 1 and after[5][0][0] < before[5][0][0]
passed, failed = passed + ok, failed + (not ok)
print(f"{'ok  ' if ok else 'FAIL'} a doomed prompt is freed with its last request")

code = server.stop()
passed, failed = passed + (code == 0), failed + (code != 0)
print(f"{'ok  ' if code == 0 else 'FAIL'} exit code {code}")
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
