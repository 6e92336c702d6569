"""The package relay: memory without copies, errors, prompts, sessions, steps, asyncio."""

import asyncio
import os
import subprocess
import sys

import numpy as np
import torch

import relay
import relay.aio

S, L, HQ, HKV, D = 37, 2, 4, 2, 16
KIND = relay.LayerKind(HQ, HKV, D)
RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def kv(tokens):
    return [(normal(tokens, HKV, D), normal(tokens, HKV, D)) for _ in range(L)]


def softmax_attention(q, keys, values):
    """q [Hq,D] on keys, values [n,Hkv,D], in fp64: out [Hq,D], lse [Hq]."""
    out, lse = np.zeros((HQ, D)), np.zeros(HQ)
    for h in range(HQ):
        s = keys[:, h * HKV // HQ].astype(np.float64) @ q[h].astype(np.float64) / np.sqrt(D)
        lse[h] = s.max() + np.log(np.exp(s - s.max()).sum())
        out[h] = np.exp(s - lse[h]) @ values[:, h * HKV // HQ].astype(np.float64)
    return out, lse


def raises(kind, code, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        assert error.code == code, f"{error!r}"
        return error
    raise AssertionError(f"{function.__name__} did not raise {kind.__name__}")


def opened(harness):
    """A client of a server that all tests share, and a model and prompt of the caller's own."""
    if "server" not in harness.shared:
        harness.shared["server"] = harness.server()
        harness.shared["client"] = relay.Client(harness.shared["server"].target)
    return harness.shared["client"]


def close(harness):
    if "server" in harness.shared:
        harness.shared["client"].close()
        code = harness.shared["server"].stop()
        harness.shared["server"].close()
        assert code == 0, code


def model(name, **fields):
    return relay.Model(f"package@{name}", [KIND] * L, kv_dtype=fields.pop("kv_dtype", "f32"), **fields)


def test_server(harness):
    client = opened(harness)
    info = client.server_info()
    assert info.backend == "cpu" and info.rows_max > 0 and info.server_epoch != 0
    assert client.healthy() and client.healthy("relay.v1.RelayAttention")
    raises(relay.NotFound, relay.Code.NOT_FOUND, client.healthy, "no.such.Service")
    return f"relayd {info.version}, {info.isa}"


def test_prompts(harness):
    client, m, layers = opened(harness), model("prompts"), kv(S)
    told = []
    first = client.register_prompt(
        "p/1", m, layers, labels={"team": "a"}, content_key=b"x" * 32, token_ids=range(S), pinned=True,
        progress=lambda done, total: told.append((done, total)))
    assert first.num_tokens == S and first.labels == {"team": "a"} and first.pinned
    assert told[-1][0] == told[-1][1] == first.num_tokens * m.kv_bytes_per_token()
    # The same bytes, from a function, torch tensors and DLPack: the same digest.
    second = client.register_prompt(
        "p/2", m, lambda layer, b, n: (torch.from_numpy(layers[layer][0][b:b + n]), layers[layer][1][b:b + n]),
        num_tokens=S)
    assert second.digest == first.digest and second.content_key == b""
    assert [p.prompt_id for p in client.list_prompts(m.key)] == ["p/1", "p/2"]
    assert client.list_prompts(m.key, "p/2")[0].generation == second.generation
    other = kv(S)
    error = raises(relay.AlreadyExists, relay.Code.ALREADY_EXISTS, client.register_prompt, "p/2", m, other)
    assert isinstance(error, relay.RelayError) and "p/2" in str(error)
    kept = client.register_prompt("p/2", m, other, on_exists=relay.OnExists.KEEP)
    assert kept.generation == second.generation
    new = client.register_prompt("p/2", m, other, on_exists=relay.OnExists.REPLACE)
    assert new.generation != second.generation
    raises(relay.Aborted, relay.Code.ABORTED, client.get_prompt, m.key, "p/2", generation=second.generation)
    assert client.update_prompt(m.key, "p/2", pinned=True, idle_ttl_s=90).idle_ttl_s == 90
    client.unregister_prompt(m.key, "p/1")
    missing = raises(relay.NotFound, relay.Code.NOT_FOUND, client.get_prompt, m.key, "p/1")
    assert isinstance(missing, LookupError)
    raises(relay.InvalidArgument, 3, client.register_prompt, "no good id", m, layers)


def test_a_source_that_fails(harness):
    client, m = opened(harness), model("source")

    def source(layer, begin, count):
        raise ZeroDivisionError("mine")

    try:
        client.register_prompt("p", m, source, num_tokens=S)
        raise AssertionError("registered")
    except ZeroDivisionError as error:
        assert str(error) == "mine"
    raises(relay.NotFound, 5, client.get_prompt, m.key, "p")
    raises(relay.Cancelled, 1, client.register_prompt, "p", m, kv(S), progress=lambda done, total: False)
    wrong = [(normal(S, HKV, D), normal(S, HKV + 1, D))] * L
    error = raises(relay.InvalidArgument, 3, client.register_prompt, "p", m, wrong)
    assert "layers[0].v" in str(error) and isinstance(error, ValueError)


class OnlyDLPack:
    """A tensor of a library that this package has never heard of."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_steps(harness):
    """Every way to hand tensors over, through stream and unary calls, against fp64."""
    client, m, layers, context = opened(harness), model("steps"), kv(S), kv(5)
    client.register_prompt("p", m, layers)
    worst = 0.0
    for stream in (True, False):
        with client.session(m, stream=stream) as session, session.request("p") as request:
            request.append(context)
            assert request.refresh().length == 5 and request.prompt_tokens == S
            q, k, v = normal(1, HQ, D), normal(1, HKV, D), normal(1, HKV, D)
            wide = normal(1, HQ, 2 * D)
            wide[:, :, ::2] = q
            with session.step([(request, 5)]) as step:
                assert step.rows == 1
                for i in range(L):
                    keys = np.concatenate([layers[i][0], context[i][0], k])
                    values = np.concatenate([layers[i][1], context[i][1], v])
                    out, lse = softmax_attention(q[0], keys, values)
                    mine = np.full((1, HQ, D), np.nan, np.float32)
                    for tensors in [(q, k, v), map(torch.from_numpy, (q, k, v)), map(OnlyDLPack, (q, k, v)),
                                    (OnlyDLPack(torch.from_numpy(q)), k, v), (wide[:, :, ::2], k, v),
                                    (OnlyDLPack(torch.from_numpy(wide)[:, :, ::2]), k, v)]:
                        got, got_lse = step.attend(i, *tensors)
                        worst = max(worst, np.abs(np.asarray(got)[0] - out).max(), np.abs(np.asarray(got_lse)[0] - lse).max())
                    assert step.attend(i, q, k, v, out=mine)[0] is mine
                    assert isinstance(step.attend(i, torch.from_numpy(q), k, v)[0], torch.Tensor)
                    worst = max(worst, np.abs(mine[0] - out).max())
                tickets = [step.submit(i, q, k, v) for i in range(L)]
                later = [step.wait(t) for t in reversed(tickets)]
                assert np.array_equal(later[0][0], mine)
                raises(relay.FailedPrecondition, 9, step.wait, tickets[0])
                assert step.timings.prompt_bytes > 0 and step.timings.total_us > 0
            raises(relay.FailedPrecondition, 9, step.attend, 0, q, k, v)
            with session.step([(request, 6, 3)], want_lse=False) as step:  # rows in pieces
                q3, k3, v3 = normal(3, HQ, D), normal(3, HKV, D), normal(3, HKV, D)
                whole, none = step.attend(0, q3, k3, v3)
                assert none is None
                pieces = [step.submit(0, q3[a:b], k3[a:b], v3[a:b], rows=(a, b - a)) for a, b in ((0, 2), (2, 3))]
                assert np.allclose(np.concatenate([step.wait(t)[0] for t in pieces]), whole, atol=1e-6)
    assert worst < 1e-5, worst
    return f"largest error {worst:.1e}"


def test_parts_merge(harness):
    """prompt part + context part, merged by LSE here, is the whole."""
    client, m, layers, context = opened(harness), model("parts"), kv(S), kv(5)
    client.register_prompt("p", m, layers)
    q = normal(1, HQ, D)
    with client.session(m) as session, session.request("p") as request:
        request.append(context)
        got = {}
        for part in relay.Part:
            with session.step([(request, 4)], part=part) as step:
                got[part] = step.attend(0, q)
    (a, la), (b, lb) = got[relay.Part.PROMPT_ONLY], got[relay.Part.CONTEXT_ONLY]
    lse = np.logaddexp(la, lb)
    merged = a * np.exp(la - lse)[..., None] + b * np.exp(lb - lse)[..., None]
    assert np.abs(merged - got[relay.Part.FULL][0]).max() < 1e-5
    assert np.abs(lse - got[relay.Part.FULL][1]).max() < 1e-5


def test_bfloat16(harness):
    """torch's bfloat16 and its bits in uint16 are the same, in and out, without numpy knowing it."""
    client, m = opened(harness), model("bf16", kv_dtype="bf16")
    prompt = [tuple(torch.from_numpy(t).bfloat16() for t in pair) for pair in kv(S)]
    client.register_prompt("p", m, prompt)
    q, k, v = (torch.from_numpy(normal(1, h, D)).bfloat16() for h in (HQ, HKV, HKV))
    with client.session(m, io_dtype=torch.bfloat16) as session, session.request("p") as request:
        with session.step([(request, 0)]) as step:
            out, _ = step.attend(0, q, k, v)
            bits = [t.view(torch.uint16).numpy() for t in (q, k, v)]
            out_bits, _ = step.attend(0, *bits)
    assert out.dtype == torch.bfloat16 and out_bits.dtype == np.uint16
    assert np.array_equal(out.view(torch.uint16).numpy(), out_bits)
    keys, values = (torch.cat([prompt[0][i], (k, v)[i]]).float().numpy() for i in (0, 1))
    expected, _ = softmax_attention(q[0].float().numpy(), keys, values)
    assert np.abs(out[0].float().numpy() - expected).max() < 0.02
    wrong = model("bf16", kv_dtype="f32")
    raises(relay.FailedPrecondition, 9, client.session, wrong)


def test_wrong_tensors(harness):
    """Nothing is sent, and the message says what was expected and what came."""
    client, m = opened(harness), model("wrong")
    client.register_prompt("p", m, kv(S))
    with client.session(m) as session, session.request("p") as request:
        q, k, v = normal(1, HQ, D), normal(1, HKV, D), normal(1, HKV, D)
        with session.step([(request, 0)]) as step:
            for tensors, options, words in [
                ((q[:, :2], k, v), {}, "q: expected shape [1, 4, 16], got [1, 2, 16]"),
                ((q.astype(np.float64), k, v), {}, "q: "),
                ((q.astype(np.float16), k, v), {}, "q: expected F32, got F16"),
                ((q, k, None), {}, "k and v"),
                ((q, "k", v), {}, "k: str is no tensor"),
                ((q, k, v), {"out": np.zeros((1, HQ, 2 * D), np.float32)[:, :, ::2]}, "out: "),
                ((q, k, v), {"out": np.zeros((2, HQ, D), np.float32)}, "out: expected shape"),
            ]:
                error = raises(relay.InvalidArgument, 3, step.attend, 0, *tensors, **options)
                assert words in str(error), error
            raises(relay.InvalidArgument, 3, step.attend, L, q, k, v)
            step.attend(0, q, k, v)  # the step is unharmed
        with session.step([(request, 9)]) as step:
            raises(relay.FailedPrecondition, 9, step.attend, 0, q, k, v)  # a gap
        request.truncate(0)
    raises(relay.InvalidArgument, 3, relay.Model, "m", [KIND] * 2, sinks=[[0.0] * HQ])
    raises(relay.InvalidArgument, 3, relay.Model, "m", [KIND], kv_dtype="int4")
    raises(relay.InvalidArgument, 3, relay.Client, "")


def test_no_server(harness):
    with relay.Client("unix:///nowhere/sock", timeout_s=1, retries=0) as client:
        error = raises(relay.Unavailable, relay.Code.UNAVAILABLE, client.healthy)
        assert isinstance(error, ConnectionError)
    raises(relay.FailedPrecondition, 9, client.healthy)


def test_fork(harness):
    """A client that crossed a fork says so instead of hanging."""
    client = opened(harness)
    child = os.fork()
    if child == 0:
        try:
            client.server_info()
            os._exit(1)
        except relay.FailedPrecondition:
            os._exit(0)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert client.healthy()


def test_asyncio(harness):
    """Eight sessions decode at once from one loop, and the loop stays free."""
    m, layers = model("aio"), kv(S)
    q, k, v = normal(1, HQ, D), normal(1, HKV, D), normal(1, HKV, D)

    async def one(client):
        async with await client.session(m) as session, await session.request("p") as request:
            await request.append([(k, v)] * L)
            async with await session.step([(request, 1)]) as step:
                return [(await step.attend(i, q, k, v))[0] for i in range(L)]

    async def everybody(target):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with relay.aio.Client(target) as client:
            await client.register_prompt("p", m, layers)
            results = await asyncio.gather(*(one(client) for _ in range(8)))
            try:
                await client.get_prompt(m.key, "none")
                raise AssertionError("found")
            except relay.NotFound:
                pass
        ticking.cancel()
        return results, ticks

    opened(harness)
    results, ticks = asyncio.run(everybody(harness.shared["server"].target))
    for result in results:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert ticks > 0


def test_what_is_left(harness):
    """Closing a client closes its sessions; the server holds nothing."""
    client = opened(harness)
    before = client.server_info()
    with relay.Client(harness.shared["server"].target) as other:
        m = model("left")
        session = other.session(m)
        requests = session.requests([None] * 3)
        step = session.step([(requests[0], 0)])
        step.submit(0, normal(1, HQ, D), normal(1, HKV, D), normal(1, HKV, D))
        assert client.server_info().requests == before.requests + 3
    raises(relay.FailedPrecondition, 9, session.handle)
    for _ in range(1000):
        after = client.server_info()
        if (after.sessions, after.requests, after.calls_in_flight) == (before.sessions, before.requests, 0):
            return
    raise AssertionError(after)


def test_stubs_need_no_native_code(harness):
    """relay.v1 works where librelay cannot be loaded; what needs it says what was tried."""
    opened(harness)
    script = """
import sys, grpc, relay
from relay.v1 import relay_pb2 as pb, relay_pb2_grpc
stub = relay_pb2_grpc.RelayAttentionStub(grpc.insecure_channel(sys.argv[1]))
assert stub.GetServerInfo(pb.GetServerInfoRequest()).backend == "cpu"
try:
    relay.Client("unix:///x")
except ImportError as error:
    assert "/nowhere/librelay.so" in str(error)
else:
    sys.exit("loaded")
"""
    run = subprocess.run([sys.executable, "-c", script, harness.shared["server"].tcp_target],
                         env={**os.environ, "RELAY_LIBRARY": "/nowhere/librelay.so"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
