"""PyTorch's attention on the CPU, as cpu_grid.py measures it beside ours.

relay: its flash attention over the prompt, with the query rows of all requests packed to each KV
head, the same over the contexts, merged by log-sum-exp. plain: the same over each request's whole
K/V. Both with the query heads of a KV head packed as rows, which reads K/V once for all of them.
What an engine does besides (storing the new tokens, gathering pages) is left out, in its favour.

The first of the layers walked holds the tensors that cpu_roofline dumped, if it did, the others
copies. Where plain would need more than PLAIN_MAX, it is measured on fewer requests, and its time
multiplied: `torch_plain_requests` says on how many.
"""

import statistics
import time
from pathlib import Path

import torch

PLAIN_MAX = 1 << 29
WALKED = 4
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def version():
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def llc_bytes():
    try:
        return (
            int(Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip("K\n"))
            << 10
        )
    except (OSError, ValueError):
        return 32 << 20


def read(folder, name, *shape):
    # [..., tokens, heads, dim] as it is in memory
    data = torch.from_file(
        f"{folder}/{name}.bin", dtype=torch.bfloat16, size=torch.Size(shape).numel()
    )
    return data.clone().view(shape)


class Cell:
    def __init__(self, cell, folder):
        hq, hkv, d, b, s, c = cell
        self.hkv, self.group, self.d, self.b, self.s, self.c = hkv, hq // hkv, d, b, s, c
        if folder:
            q = read(folder, "q", b, hkv, self.group, d)
            k, v = (
                read(folder, n, s, hkv, d).transpose(0, 1)[None].contiguous() for n in ("k", "v")
            )
            ck, cv = (
                read(folder, n, b, c, hkv, d).transpose(1, 2).contiguous() for n in ("ck", "cv")
            )
            self.out = read(folder, "out", b, hkv, self.group, d)
        else:
            q = torch.rand(b, hkv, self.group, d).bfloat16() * 2 - 1
            k, v = ((torch.rand(1, hkv, s, d) * 2 - 1).bfloat16() for _ in range(2))
            ck, cv = (torch.empty(b, hkv, c, d, dtype=torch.bfloat16) for _ in range(2))
            ck[:], cv[:] = (torch.rand(2, hkv, c, d) * 2 - 1).bfloat16()  # of all requests
        self.q = q
        want = WALKED * llc_bytes()
        layer = sum(t.nbytes for t in (k, v, ck, cv))
        self.layers = [(k, v, ck, cv)]
        self.layers += [tuple(t.clone() for t in (k, v, ck, cv)) for _ in range(want // layer)]
        request = 4 * hkv * d * (s + c)
        self.plain_b = max(1, min(b, PLAIN_MAX // request))
        n = self.plain_b
        whole = [torch.cat((p.expand(n, -1, -1, -1), own[:n]), 2) for p, own in ((k, ck), (v, cv))]
        self.plain_layers = [whole]
        self.plain_layers += [[t.clone() for t in whole] for _ in range(want // (n * request))]
        self.relay_us, self.plain_us = [], []
        self.at = {"relay": 0, "plain": 0}

    def relay(self, layer):
        k, v, ck, cv = layer
        rows = self.q.transpose(0, 1).reshape(1, self.hkv, -1, self.d)
        out_p, lse_p = flash(rows, k, v, 0.0, False)[:2]
        out_c, lse_c = flash(self.q, ck, cv, 0.0, False)[:2]
        out_p = out_p.view(self.hkv, self.b, self.group, self.d).transpose(0, 1)
        lse_p = lse_p.reshape(self.hkv, self.b, self.group).transpose(0, 1)
        share = torch.sigmoid(lse_p - lse_c)[..., None]
        return torch.lerp(out_c.float(), out_p.float(), share).bfloat16()

    def plain(self, layer):
        return flash(self.q[: self.plain_b], *layer, 0.0, False)[0]

    def walk(self, what, function, layers, seconds):
        """Times single layers, one after the other; the first call only warms up."""
        times = []
        if not self.at[what]:
            function(layers[0])
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            self.at[what] += 1
            layer = layers[self.at[what] % len(layers)]
            start = time.perf_counter()
            function(layer)
            times.append((time.perf_counter() - start) * 1e6)
        return times

    def time_relay(self, seconds):
        self.relay_us += self.walk("relay", self.relay, self.layers, seconds)

    def time_plain(self, seconds):
        times = self.walk("plain", self.plain, self.plain_layers, seconds)
        self.plain_us += [t * self.b / self.plain_b for t in times]

    def medians(self):
        line = {
            "torch_relay_us": round(statistics.median(self.relay_us), 1),
            "torch_plain_us": round(statistics.median(self.plain_us), 1),
        }
        return line | ({"torch_plain_requests": self.plain_b} if self.plain_b < self.b else {})

    def exact(self, i):
        """Request i in fp64: [Hkv,g,d]."""
        k, v, ck, cv = self.layers[0]
        keys = torch.cat((k[0], ck[i]), 1).double()
        values = torch.cat((v[0], cv[i]), 1).double()
        return torch.softmax(self.q[i].double() @ keys.transpose(1, 2) / self.d**0.5, -1) @ values

    def errors(self):
        """Relative L2 and largest errors against fp64, of the first requests."""
        n = min(self.plain_b, 4)
        want = torch.stack([self.exact(i) for i in range(n)])
        line = {}
        relay, plain = self.relay(self.layers[0]), self.plain(self.plain_layers[0])
        for name, got in (("", self.out), ("torch_relay_", relay), ("torch_plain_", plain)):
            error = got[:n].double() - want
            line[name + "error_l2"] = float(f"{(error.norm() / want.norm()).item():.3e}")
            line[name + "error_max"] = float(f"{error.abs().max().item():.3e}")
        return line
