"""Small random models, one for each thing that attention can be, with weights that make it matter.

Each has what the maths needs changed in the description of relayd: `faults`, by name. A test that
does not notice them would not notice them in the service either.
"""

import copy
import dataclasses

import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

COMMON = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    tie_word_embeddings=False, attention_dropout=0.0)


@dataclasses.dataclass
class Case:
    name: str
    build: object  # () -> model
    faults: dict  # name -> what makes a wrong relay.Model of the right one
    reference: str = "eager"  # the attention of the fp64 run


def randomised(model, seed=0):
    """Weights large enough that attention is far from uniform, but for the norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            fan_in = weight.shape[-1]
            weight.data = torch.randn(weight.shape, generator=generator) * (1.6 / fan_in**0.5)
        elif "sink" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 2
    return model.eval()


def kind(**changes):
    """A fault: all layers with these fields changed where they are in use."""

    def change(spec):
        layers = []
        for layer in spec.layers:
            now = {k: f(getattr(layer, k)) for k, f in changes.items() if getattr(layer, k)}
            layers.append(dataclasses.replace(layer, **now))
        return dataclasses.replace(spec, layers=tuple(layers))

    return change


def none(_):
    return 0


def built(config, model, **fields):
    def build():
        torch.manual_seed(0)
        return randomised(getattr(transformers, model)(getattr(transformers, config)(**{**COMMON, **fields})))

    return build


SLIDING_FULL = ["sliding_attention", "full_attention"] * 2
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def alibi():
    """Llama without RoPE, with ALiBi through the attention interface (BLOOM and MPT do not use it)."""
    model = built("LlamaConfig", "LlamaForCausalLM", num_attention_heads=8, num_key_value_heads=2)()
    slopes = tuple(2.0 ** -(i + 1) for i in range(8))
    for layer in model.model.layers:
        layer.self_attn.alibi_slopes = nn.Buffer(torch.tensor(slopes), persistent=False)
    model.model.rotary_emb.forward = NoRotation(model.config.head_dim)
    model.set_attn_implementation("alibi_reference")
    return model


class NoRotation:
    """Rotary embeddings by no angle. A plain object, so that deepcopy and double() leave it alone."""

    def __init__(self, width):
        self.width = width

    def __call__(self, x, position_ids):
        shape = (*position_ids.shape, self.width)
        return x.new_ones(shape), x.new_zeros(shape)


def alibi_reference(module, query, key, value, attention_mask, scaling, **options):
    """Eager attention with slope * (j - p), for unpadded sequences. fp64 stays fp64."""
    rows, keys = query.shape[2], key.shape[2]
    heads = query.shape[1]
    key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    p, j = torch.arange(keys - rows, keys)[:, None], torch.arange(keys)[None]
    scores = query @ key.transpose(2, 3) * scaling + module.alibi_slopes.to(query.dtype)[:, None, None] * (j - p)
    scores = scores.masked_fill(j > p, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("alibi_reference", alibi_reference)
AttentionMaskInterface.register("alibi_reference", eager_mask)


def without_sinks(spec):
    return dataclasses.replace(spec, sinks=())


def own_kv(spec):
    """A layer that shares K/V reads the wrong layer's."""
    wrong = tuple(layer if layer == i else layer - 2 for i, layer in enumerate(spec.kv_layer))
    return dataclasses.replace(spec, kv_layer=wrong)


CASES = [
    Case("llama_gqa", built("LlamaConfig", "LlamaForCausalLM", num_attention_heads=8),
         {"scale": kind(scale=lambda x: x * 1.02)}),
    Case("llama_mqa", built("LlamaConfig", "LlamaForCausalLM", num_key_value_heads=1, head_dim=24),
         {"scale": kind(scale=lambda x: x * 1.02)}),
    Case("mistral_window", built("MistralConfig", "MistralForCausalLM", sliding_window=12),
         {"window+1": kind(window=lambda w: w + 1), "window-1": kind(window=lambda w: w - 1),
          "no window": kind(window=none)}),
    Case("qwen3", built("Qwen3Config", "Qwen3ForCausalLM", head_dim=32),
         {"scale": kind(scale=lambda x: x * 1.02)}),
    Case("gemma2_softcap", built("Gemma2Config", "Gemma2ForCausalLM", head_dim=16, sliding_window=12,
                                 attn_logit_softcapping=2.0, final_logit_softcapping=None,
                                 query_pre_attn_scalar=8, layer_types=SLIDING_FULL),
         {"no softcap": kind(softcap=none), "softcap": kind(softcap=lambda c: c * 1.1),
          "no window": kind(window=none)}),
    Case("gpt_oss_sinks", built("GptOssConfig", "GptOssForCausalLM", head_dim=16, sliding_window=12,
                                num_local_experts=2, num_experts_per_tok=1, layer_types=SLIDING_FULL,
                                rope_parameters=ROPE),
         {"no sinks": without_sinks, "window+1": kind(window=lambda w: w + 1)}),
    Case("llama4_chunked", built("Llama4TextConfig", "Llama4ForCausalLM", head_dim=16, attention_chunk_size=16,
                                 intermediate_size_mlp=96, num_local_experts=2, moe_layers=[],
                                 interleave_moe_layer_step=0, rope_parameters=ROPE),
         {"no chunks": kind(chunk=none), "chunk+1": kind(chunk=lambda c: c + 1)}),
    Case("alibi", alibi, {"slopes": kind(alibi_slopes=lambda s: tuple(x * 1.05 for x in s)),
                          "no slopes": kind(alibi_slopes=lambda s: ())}, reference="alibi_reference"),
    Case("gemma4_shared_kv", built("Gemma4TextConfig", "Gemma4ForCausalLM", head_dim=16, global_head_dim=32,
                                   sliding_window=12, num_hidden_layers=6, num_kv_shared_layers=2,
                                   layer_types=["sliding_attention", "full_attention"] * 3,
                                   hidden_size_per_layer_input=8, vocab_size_per_layer_input=97),
         {"another layer's": own_kv}),
    Case("deepseek_dims", built("DeepseekV3Config", "DeepseekV3ForCausalLM", num_key_value_heads=4, q_lora_rank=16,
                                kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
                                first_k_dense_replace=4, rope_parameters=ROPE),
         {"scale": kind(scale=lambda x: x * 1.02)}),
]


def in_double(model, reference):
    """The same weights in fp64, with Transformers' own attention."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation(reference)
    if getattr(model.config, "num_local_experts", 0):
        model.set_experts_implementation("eager")  # the fused one has no fp64
    return model
