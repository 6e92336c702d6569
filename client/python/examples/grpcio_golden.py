#!/usr/bin/env python3
"""A standard gRPC client of relayd: stubs made from the .proto, no library of this project.

Registers a recorded system prompt, opens four requests on it, runs four decode steps through two
layers, and checks every result. Usage: grpcio_golden.py TARGET  (e.g. 127.0.0.1:7070)
"""
import json
import pathlib
import struct
import sys
import tempfile

import grpc
import numpy as np
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[3]
stubs = tempfile.mkdtemp()
protoc.main(["protoc", f"-I{ROOT}/proto", f"--python_out={stubs}", f"--grpc_python_out={stubs}", "relay/v1/relay.proto"])
sys.path.insert(0, stubs)
from relay.v1 import relay_pb2 as pb  # noqa: E402
from relay.v1 import relay_pb2_grpc  # noqa: E402


def load(name):
    """A safetensors file: its arrays by name (bf16 as its bits) and its model."""
    raw = (ROOT / "tests/golden" / name).read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8:end])
    model = json.loads(head.pop("__metadata__")["model"])
    types = {"F32": "<f4", "BF16": "<u2", "I32": "<i4"}
    return {key: np.frombuffer(raw[end + t["data_offsets"][0]:end + t["data_offsets"][1]], types[t["dtype"]])
            .reshape(t["shape"]) for key, t in head.items()}, model


def chunk(layer, k, v):
    return pb.KvChunk(layer=layer, token_begin=0, token_count=len(k), dtype=pb.DTYPE_BF16, k=k.tobytes(), v=v.tobytes())


prompt, m = load("gemma3-270m-prompt.safetensors")
steps, _ = load("gemma3-270m-steps.safetensors")
layers = range(m["num_layers"])
model = pb.ModelSpec(model_key="gemma3-270m@python", layer_kind=layers, kv_dtype=pb.DTYPE_BF16, kinds=[
    pb.LayerKind(num_q_heads=m["num_q_heads"], num_kv_heads=m["num_kv_heads"], head_dim_qk=m["head_dim_qk"],
                 head_dim_v=m["head_dim_v"], scale=m["scale"], window=m["layers"][i]["window"]) for i in layers])
relay = relay_pb2_grpc.RelayAttentionStub(grpc.insecure_channel(sys.argv[1]))

# Register: the header, then the K/V of each layer. The last answer is the prompt.
header = pb.RegisterHeader(prompt_id="python/demo", model=model, num_tokens=len(prompt["layers.0.k"]))
uploads = [pb.RegisterPromptRequest(header=header)] + [
    pb.RegisterPromptRequest(chunk=chunk(i, prompt[f"layers.{i}.k"], prompt[f"layers.{i}.v"])) for i in layers]
registered = list(relay.RegisterPrompt(iter(uploads)))[-1].prompt
print(f"registered {registered.prompt_id}: {registered.num_tokens} tokens, {registered.bytes} bytes")

# A session owns requests; each request has its own prefilled tokens.
session = relay.OpenSession(pb.OpenSessionRequest(model=model, io_dtype=pb.DTYPE_F32)).session
lens = steps["user_lens"]
handles = relay.OpenRequests(pb.OpenRequestsRequest(
    session=session, requests=[pb.OpenRequest(tag=r + 1, prompt_id="python/demo") for r in range(len(lens))])).handles
for r, handle in enumerate(handles):
    own = slice(lens[:r].sum(), lens[:r + 1].sum())
    relay.AppendKv(iter([pb.AppendKvRequest(header=pb.AppendKvHeader(session=session, handle=handle))] + [
        pb.AppendKvRequest(chunk=chunk(i, steps[f"layers.{i}.user_k"][own], steps[f"layers.{i}.user_v"][own]))
        for i in layers]))

error_out = error_lse = 0.0
for s in range(len(steps["q_positions"])):
    for i in layers:
        q, k, v, out, lse = (steps[f"layers.{i}.{name}"][s] for name in ("q", "k_new", "v_new", "out", "lse"))
        answer = relay.BatchedRelayAttention(pb.BatchedRelayAttentionRequest(
            session=session, step_id=s + 1, layer=i, want_lse=True, handles=handles, q_lens=[1] * len(lens),
            positions=lens + s, q=q.tobytes(), k=k.tobytes(), v=v.tobytes()))
        error_out = max(error_out, np.abs(np.frombuffer(answer.out, "<f4").reshape(out.shape) - out).max())
        error_lse = max(error_lse, np.abs(np.frombuffer(answer.lse, "<f4").reshape(lse.shape) - lse).max())
relay.CloseSession(pb.CloseSessionRequest(session=session))
relay.UnregisterPrompt(pb.UnregisterPromptRequest(model_key=model.model_key, prompt_id="python/demo"))
print(f"largest error of out {error_out:.1e}, of LSE {error_lse:.1e}")
sys.exit(0 if error_out < 1e-4 and error_lse < 1e-4 else 1)  # NaN fails too
