"""The seam for Transformers on small random models: every thing that attention can be has a caller.

Logits are compared with an fp64 run of the same weights with Transformers' own attention; for each
model, what its feature needs is then changed in relayd's description, and the same comparison must
notice.
"""

import gc

import torch
import transformers

import relay
import relay.transformers as rt
from loops import GATE, Describes, difference, forced_relay, generate_own, generate_relay, planted, reference_logits
from small_models import CASES, COMMON, built, in_double

transformers.logging.set_verbosity_error()
TOKENS = 10
generator = torch.Generator().manual_seed(11)


def ids(n):
    return torch.randint(2, COMMON["vocab_size"], (n,), generator=generator).tolist()


SYSTEM, USERS = ids(40), [ids(n) for n in (5, 13, 1)]


def server(harness):
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


def case_test(case):
    def test(harness):
        model = case.build()
        double = in_double(model, case.reference)
        client = server(harness)
        with rt.attach(model, client, model_key=case.name) as engine:
            rt.register_system_prompt(model, None, SYSTEM, "system")
            tokens, steps = generate_relay(model, "system", USERS, TOKENS, system=SYSTEM)
            expected = [reference_logits(double, SYSTEM, u, t) for u, t in zip(USERS, tokens, strict=True)]
            errors = {"generate": max(
                difference(steps[i][row], expected[row][i]) for i in range(TOKENS) for row in range(len(USERS)))}
            for name, prompt, own, options in [
                ("loop", "system", USERS, {"chunk_tokens": 4}),
                ("no prompt", None, [SYSTEM + u for u in USERS], {"chunk_tokens": 1024}),
                ("appended", None, [SYSTEM + u for u in USERS], {"append": True}),
            ]:
                got = forced_relay(engine, prompt, own, tokens, **options)
                errors[name] = max(map(difference, got, expected))
        caught = {}
        for name, change in case.faults.items():
            with planted(Describes(change)), rt.attach(model, client, model_key=f"{case.name}, {name}") as engine:
                rt.register_system_prompt(model, None, SYSTEM, "system")
                caught[name] = max(map(difference, forced_relay(engine, "system", USERS, tokens), expected))
        said = ", ".join(f"{k} {v:.1e}" for k, v in errors.items())
        said += "\nfaults: " + ", ".join(f"{k} {v:.1e}" for k, v in caught.items())
        assert max(errors.values()) < GATE, said
        assert min(caught.values()) > GATE, said
        own_attention = generate_own(model, SYSTEM, USERS[0], 3)  # given back by the engine's close
        assert own_attention == tokens[0][:3]
        return said

    test.__name__ = f"test_{case.name}"
    return test


for _case in CASES:
    globals()[f"test_{_case.name}"] = case_test(_case)


def llama(harness):
    if "llama" not in harness.shared:
        model = built("LlamaConfig", "LlamaForCausalLM")()
        harness.shared["llama"] = (model, rt.attach(model, server(harness), model_key="llama, shared"))
        rt.register_system_prompt(model, None, SYSTEM, "system")
    return harness.shared["llama"]


def raises(kind, words, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        assert words in str(error), f"{error!r}"
        return
    raise AssertionError(f"no {kind.__name__}")


def test_half_precision(harness):
    """bfloat16 and float16 models, whose q, k, v and out travel as they are."""
    said = []
    for dtype, gate in ((torch.bfloat16, 0.5), (torch.float16, 0.06)):
        model = built("LlamaConfig", "LlamaForCausalLM")().to(dtype)
        double = in_double(model, "eager")
        with rt.attach(model, server(harness), model_key=f"llama {dtype}") as engine:
            rt.register_system_prompt(model, None, SYSTEM, "system")
            tokens, steps = generate_relay(model, "system", USERS, TOKENS)
            expected = [reference_logits(double, SYSTEM, u, t) for u, t in zip(USERS, tokens, strict=True)]
            assert engine.spec.kv_dtype == relay.dtypes.as_dtype(dtype)
        error = max(difference(steps[i][row], expected[row][i]) for i in range(TOKENS) for row in range(len(USERS)))
        with torch.no_grad():
            own = model(input_ids=torch.tensor([SYSTEM + USERS[1]]), use_cache=False).logits[0, -1]
        said.append(f"{dtype}: {error:.2f}, Transformers itself {difference(own, expected[1][0]):.2f}")
        assert error < gate, said
    return "; ".join(said)


def test_plain_generate(harness):
    """No prompt, padded on the left as tokenizers do it, rows that end early: as by itself."""
    model, engine = llama(harness)
    longest = max(map(len, USERS))
    rows = torch.tensor([[0] * (longest - len(u)) + u for u in USERS])
    inputs = {"input_ids": rows, "attention_mask": (rows != 0).long()}
    with rt.RelayCache(model) as cache:
        tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=12, do_sample=False)
        end = int(tokens[0, longest + 2])  # with this as its end, a row ends after three
    with rt.RelayCache(model) as cache:
        tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=12, do_sample=False, eos_token_id=end)
    with engine.local():
        own = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end)
    assert tokens.tolist() == own.tolist()
    assert 0 in tokens[0, longest + 3:].tolist()


def test_sampling(harness):
    """The same seed samples the same tokens as with Transformers' own attention and cache."""
    model, engine = llama(harness)
    want = dict(do_sample=True, temperature=0.9, top_k=20, num_return_sequences=3)
    torch.manual_seed(5)
    tokens, _ = generate_relay(model, "system", USERS[:1], 16, system=SYSTEM, **want)
    engine.close()
    harness.shared.pop("llama")
    torch.manual_seed(5)
    inputs = torch.tensor([SYSTEM + USERS[0]])
    own = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=16, **want)
    assert tokens == own[:, inputs.shape[1]:].tolist()
    assert len({tuple(row) for row in tokens}) > 1


def test_turns(harness):
    """A second generate() with the same cache goes on where the first ended; reset forgets all."""
    model, _ = llama(harness)
    with rt.RelayCache(model, "system") as cache:
        first = model.generate(**cache.inputs([USERS[0]], 0, SYSTEM), past_key_values=cache, max_new_tokens=6, do_sample=False)
        more = torch.cat([first, torch.tensor([USERS[1]])], 1)
        second = model.generate(more, attention_mask=torch.ones_like(more), past_key_values=cache, max_new_tokens=6, do_sample=False)
        assert cache.lengths == [second.shape[1] - len(SYSTEM) - 1]
        cache.reset()
        again = model.generate(**cache.inputs([USERS[0]], 0, SYSTEM), past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert again.tolist() == first.tolist()
    fresh, _ = generate_relay(model, None, [more[0].tolist()], 6)
    assert second[0, more.shape[1]:].tolist() == fresh[0]


def test_rollback(harness):
    """Assisted decoding crops the cache; prefill in chunks through generate."""
    model, _ = llama(harness)
    looping = (USERS[1] * 4)[:40]
    plain, _ = generate_relay(model, None, [looping], 16)
    assisted, _ = generate_relay(model, None, [looping], 16, prompt_lookup_num_tokens=4)
    chunked, _ = generate_relay(model, None, [looping], 16, prefill_chunk_size=7)
    assert assisted == plain and chunked == plain


def test_padding_on_both_sides(harness):
    """A plain forward with a mask: tokens that do not count are nowhere."""
    model, engine = llama(harness)
    double = in_double(model, "eager")
    sequences = engine.open_many(["system"] * 2)
    rows = torch.tensor([[0, 0, *USERS[0], 0], [*USERS[1][:8]]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [1] * 8])
    at = (mask.cumsum(1) - 1).clamp(min=0) + len(SYSTEM)
    with torch.no_grad():
        out = model(input_ids=rows, attention_mask=mask, position_ids=at, use_cache=False, relay=sequences).logits
    assert [s.length for s in sequences] == [5, 8]
    for got, user in ((out[0, 6], USERS[0]), (out[1, 7], USERS[1][:8])):
        assert difference(got, reference_logits(double, SYSTEM, user, [0])[0]) < GATE
    for sequence in sequences:
        sequence.close()


def test_rows_come_and_go(harness):
    """Continuous batching: a sequence joins, one leaves, one is truncated; logits as if alone."""
    model, engine = llama(harness)
    double = in_double(model, "eager")
    texts = [list(u) for u in USERS]
    live = {}

    def step(rows):
        fed = [texts[r][-1] for r in rows]
        with torch.no_grad():
            out = model(input_ids=torch.tensor(fed)[:, None], position_ids=rt.positions([live[r] for r in rows]),
                        use_cache=False, relay=[live[r] for r in rows]).logits[:, -1]
        for r, logits in zip(rows, out, strict=True):
            assert difference(logits, reference_logits(double, SYSTEM, texts[r], [0])[0]) < GATE
            texts[r].append(int(logits.argmax()))

    for r in (0, 1):
        live[r] = engine.open("system")
        texts[r].append(int(rt.prefill(model, live[r], texts[r]).argmax()))
    step([0, 1])
    live[2] = engine.open("system")
    texts[2].append(int(rt.prefill(model, live[2], texts[2]).argmax()))
    step([2, 0, 1])
    live.pop(0).close()
    step([1, 2])
    live[1].truncate(live[1].length - 3)
    del texts[1][-3:]
    step([2, 1])
    for sequence in live.values():
        sequence.close()


def test_a_pass_that_breaks_off(harness):
    """Leaves the sequences as they were; the next pass is right. A cache says that it is broken."""
    model, engine = llama(harness)
    sequence = engine.open("system")
    rt.prefill(model, sequence, USERS[0])
    before = sequence.length
    broken = model.model.layers[2].mlp
    handle = broken.register_forward_hook(lambda *_: 1 / 0)

    def feed():
        with torch.no_grad():
            return model(input_ids=torch.tensor([[7]]), position_ids=rt.positions([sequence]), use_cache=False,
                         relay=[sequence]).logits[0, -1]

    raises(ZeroDivisionError, "", feed)
    assert sequence.length == before
    cache = rt.RelayCache(model, "system")
    raises(ZeroDivisionError, "", model.generate, **cache.inputs(USERS, 0), past_key_values=cache, max_new_tokens=2)
    handle.remove()
    got = feed()
    assert sequence.length == before + 1
    assert difference(got, reference_logits(in_double(model, "eager"), SYSTEM, [*USERS[0], 7], [0])[0]) < GATE
    raises(relay.FailedPrecondition, "broke off", model.generate, **cache.inputs(USERS, 0), past_key_values=cache,
           max_new_tokens=2)
    cache.close()
    raises(relay.FailedPrecondition, "closed", model.generate, **cache.inputs(USERS, 0), past_key_values=cache,
           max_new_tokens=2)
    sequence.close()


def test_what_it_refuses(harness):
    model, engine = llama(harness)
    cache = rt.RelayCache(model, "system")
    inputs = cache.inputs(USERS, 0)
    raises(relay.Unimplemented, "beam search", model.generate, **inputs, past_key_values=cache, num_beams=2, max_new_tokens=4)
    raises(relay.FailedPrecondition, "without a request", model.generate, torch.tensor([SYSTEM]), max_new_tokens=2)
    raises(relay.NotFound, "no prompt", rt.RelayCache, model, "never-registered")
    raises(relay.AlreadyExists, "other contents", rt.register_system_prompt, model, None, SYSTEM[1:], "system")
    sequence = engine.open("system")
    one = torch.tensor([[5]])
    with torch.no_grad():
        at = sequence.positions()[None]
        raises(relay.InvalidArgument, "goes on at 40", model, input_ids=one, position_ids=at - 1, use_cache=False, relay=[sequence])
        raises(relay.InvalidArgument, "1 rows for 2 sequences", model, input_ids=one, position_ids=at, use_cache=False,
               relay=[sequence, sequence])
        raises(relay.InvalidArgument, "masks of padding", model, input_ids=one, position_ids=at, use_cache=False,
               relay=[sequence], attention_mask=torch.zeros(1, 1, 1, 1))
        raises(relay.FailedPrecondition, "another cache", model, input_ids=torch.tensor([[5]]), position_ids=at,
               past_key_values=filled_cache(model, engine), relay=[sequence])
        raises(relay.InvalidArgument, "Prefill in pieces", model, input_ids=torch.zeros(1, 5000, dtype=torch.long),
               use_cache=False, relay=[sequence])
    raises(relay.Unimplemented, "gradients", model, input_ids=one, position_ids=at, use_cache=False, relay=[sequence])
    assert sequence.length == 0
    sequence.close()
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=97, hidden_size=64, n_layer=1, n_head=4))
    raises((relay.Unimplemented, ValueError), "", rt.attach, bloom, server(harness))
    raises(relay.FailedPrecondition, "not attached", rt.RelayCache, bloom)
    both = built("LlamaConfig", "LlamaForCausalLM")()
    both.config.is_causal = False
    raises(relay.Unimplemented, "mask", rt.attach, both, server(harness))


def filled_cache(model, engine):
    cache = transformers.DynamicCache()
    with engine.local():
        model(input_ids=torch.tensor([SYSTEM]), past_key_values=cache)
    return cache


def test_a_lost_session(harness):
    """The server forgot all: sequences are lost with a clean error, new ones get a new session."""
    model, engine = llama(harness)
    sequence = engine.open("system")
    rt.prefill(model, sequence, USERS[0])
    lost = engine.session
    restart(harness)
    raises((relay.NotFound, relay.FailedPrecondition), "", rt.prefill, model, sequence, USERS[1])
    tokens, _ = generate_relay(model, "system", USERS, 4)
    assert engine.session is not lost
    assert tokens[0] == generate_relay(model, "system", USERS[:1], 4)[0][0]


def restart(harness):
    harness.shared["server"].stop()
    harness.shared["server"].start()
    rt.register_system_prompt(harness.shared["llama"][0], None, SYSTEM, "system")


def test_nothing_is_left(harness):
    """Caches that nobody closed end with the collector, at the next open; the rest with the engine."""
    model, engine = llama(harness)
    client = server(harness)
    gc.collect()
    engine.open("system").close()
    before = client.server_info().requests
    cache = rt.RelayCache(model, "system")
    model.generate(**cache.inputs(USERS, 0), past_key_values=cache, max_new_tokens=2)
    assert client.server_info().requests == before + len(USERS)
    del cache
    gc.collect()
    engine.open("system").close()
    assert client.server_info().requests == before
    engine.close()
    harness.shared.pop("llama")
    info = client.server_info()
    assert (info.sessions, info.requests, info.calls_in_flight) == (0, 0, 0), info
