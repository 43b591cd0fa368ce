"""Dumps GGUF files whose tensors have every block type, with what the reference implementations make of them, in data/gguf/:

blocks.safetensors                    TYPE.bytes and TYPE.values: random rows quantised by ggml (k-quants) or the gguf
                                      package, and dequantised by the gguf package; TYPE is ggml's name
NAME.gguf, NAME.safetensors           a tiny random model, `ids` (T) i64 and `logits` (T, V) f32

| name      | covers                                                                                             |
|-----------|----------------------------------------------------------------------------------------------------|
| llama     | each linear of another type, k-quants among them; interleaved q and k; output weights of their own |
| qwen3moe  | gate and up of different types, k-quants and 32-blocks; tied embeddings                            |
| gpt-oss   | experts in MXFP4 with biases; sinks, sliding windows, YaRN as gpt-oss has it                       |

The logits are those of transformers on the dequantised weights in fp32. With --llama-cpp, prints how far llama.cpp is, too,
which rounds activations to 8 bits (and, of YaRN, the bounds to whole dimensions).

Run: /opt/peers-venv/bin/python tests/golden/gguf_models.py [--llama-cpp]
"""

import ctypes
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy
import torch
from common import DATA, save_expected
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen3MoeConfig

FOLDER = DATA / "gguf"
TYPES = [
    Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K,
    Type.Q6_K, Type.MXFP4,
]  # fmt: skip
GGML = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))


def quantise(values, kind):
    """(.., C) f32 -> (.., bytes a row) u8."""
    values = numpy.ascontiguousarray(values, dtype=numpy.float32)
    if not kind.name.endswith("_K"):
        return gguf.quants.quantize(values, kind).view(numpy.uint8)
    width = values.shape[-1]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = numpy.empty((*values.shape[:-1], width // block * size), dtype=numpy.uint8)
    pointer = ctypes.c_void_p
    GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
    GGML.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer]
    written = GGML.ggml_quantize_chunk(
        int(kind), values.ctypes.data, out.ctypes.data, 0, values.size // width, width, None
    )
    assert written == out.size
    return out


def dequantise(data, kind):
    return torch.from_numpy(gguf.quants.dequantize(data, kind).astype(numpy.float32))


def dump_blocks():
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for kind in TYPES:
        values = torch.randn((3, 512), generator=generator) * torch.rand((3, 1), generator=generator)
        values[1, :256] = 0
        data = quantise(values, kind)
        tensors |= {f"{kind.name}.bytes": torch.from_numpy(data), f"{kind.name}.values": dequantise(data, kind)}
    save_file(tensors, FOLDER / "blocks.safetensors")


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            is_norm = "norm" in name
            std = 1.0 if name.endswith(("sinks", "router.weight", "mlp.gate.weight")) else 0.12
            parameter.normal_(1.0 if is_norm else 0.0, 0.2 if is_norm else std, generator=generator)


class Writer:
    """Writes tensors in their types and puts what is left of them back into the model."""

    def __init__(self, name, architecture, config):
        self.path = FOLDER / f"{name}.gguf"
        self.gguf = gguf.GGUFWriter(self.path, architecture)
        self.gguf.add_vocab_size(config.vocab_size)
        self.gguf.add_tokenizer_model("no_vocab")
        self.gguf.add_block_count(config.num_hidden_layers)
        self.gguf.add_context_length(config.max_position_embeddings)
        self.gguf.add_embedding_length(config.hidden_size)
        self.gguf.add_feed_forward_length(config.intermediate_size)
        self.gguf.add_head_count(config.num_attention_heads)
        self.gguf.add_head_count_kv(config.num_key_value_heads)
        self.gguf.add_key_length(config.head_dim)
        self.gguf.add_value_length(config.head_dim)
        self.gguf.add_layer_norm_rms_eps(config.rms_norm_eps)
        self.gguf.add_rope_freq_base(config.rope_parameters["rope_theta"])

    def put(self, name, parameter, kind=Type.F32, to_file=lambda x: x, to_model=lambda x: x):
        values = to_file(parameter.detach()).contiguous().numpy()
        data = values if kind == Type.F32 else quantise(values, kind)
        self.gguf.add_tensor(name, data, raw_dtype=kind)
        with torch.no_grad():
            parameter.copy_(to_model(torch.from_numpy(values) if kind == Type.F32 else dequantise(data, kind)))

    def close(self):
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()


def interleave(heads):
    return lambda w: w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def uninterleave(heads):
    return lambda w: w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def put_shared(writer, model, embeddings, types):
    """What all have: embeddings, norms, attention, a router."""
    writer.put("token_embd.weight", model.model.embed_tokens.weight, embeddings)
    writer.put("output_norm.weight", model.model.norm.weight)
    for layer, block in enumerate(model.model.layers):
        writer.put(f"blk.{layer}.attn_norm.weight", block.input_layernorm.weight)
        for name, module in [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")]:
            linear = getattr(block.self_attn, module)
            options = {}
            if model.config.model_type == "llama" and name in "qk":
                heads = linear.weight.shape[0] // model.config.head_dim
                options = {"to_file": interleave(heads), "to_model": uninterleave(heads)}
            writer.put(f"blk.{layer}.attn_{name}.weight", linear.weight, types[name], **options)
            if linear.bias is not None:
                writer.put(f"blk.{layer}.attn_{name}.bias", linear.bias)


def build(config, seed):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    randomise(model, seed)
    return model


def finish(writer, model, seed):
    writer.close()
    path = writer.path.with_suffix(".safetensors")
    ids, logits = save_expected(model, path, num_tokens=40, seed=seed)
    print(f"{writer.path.name}: {writer.path.stat().st_size} bytes, logits std {logits.std():.3f}")
    if "--llama-cpp" in sys.argv:
        theirs = llama_cpp_logits(writer.path, ids)
        print(f"  llama.cpp: relative error {(theirs - logits).abs().max() / logits.abs().max():.4f}")


def llama_cpp_logits(path, ids):
    f32 = llama_cpp.GGML_TYPE_F32
    options = dict(n_ctx=128, n_threads=1, logits_all=True, type_k=f32, type_v=f32, flash_attn=False, verbose=False)
    model = llama_cpp.Llama(str(path), **options)
    model.eval(ids.tolist())
    return torch.from_numpy(numpy.array(model.scores[: len(ids)], dtype=numpy.float32))


def dump_llama():
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = build(config, seed=41)
    writer = Writer("llama", "llama", config)
    writer.gguf.add_rope_dimension_count(config.head_dim)
    types = {"q": Type.Q2_K, "k": Type.Q3_K, "v": Type.Q5_K, "output": Type.Q5_0}
    put_shared(writer, model, Type.Q8_0, types)
    writer.put("output.weight", model.lm_head.weight, Type.Q6_K)
    for layer, block in enumerate(model.model.layers):
        writer.put(f"blk.{layer}.ffn_norm.weight", block.post_attention_layernorm.weight)
        writer.put(f"blk.{layer}.ffn_gate.weight", block.mlp.gate_proj.weight, Type.Q4_K)
        writer.put(f"blk.{layer}.ffn_up.weight", block.mlp.up_proj.weight, Type.Q4_1)
        writer.put(f"blk.{layer}.ffn_down.weight", block.mlp.down_proj.weight, Type.Q5_1)
    finish(writer, model, seed=41)


def dump_qwen3moe():
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=256, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2, num_experts=4,
        num_experts_per_tok=2, norm_topk_prob=True, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        max_position_embeddings=512, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    model = build(config, seed=42)
    writer = Writer("qwen3moe", "qwen3moe", config)
    writer.gguf.add_expert_count(config.num_experts)
    writer.gguf.add_expert_used_count(config.num_experts_per_tok)
    writer.gguf.add_expert_feed_forward_length(config.moe_intermediate_size)
    types = {"q": Type.Q4_K, "k": Type.Q8_0, "v": Type.F16, "output": Type.Q4_0}
    put_shared(writer, model, Type.Q4_K, types)
    kinds = [(Type.Q4_K, Type.Q6_K, Type.Q4_0), (Type.Q2_K, Type.Q3_K, Type.Q5_1)]
    for layer, (block, (gate, up, down)) in enumerate(zip(model.model.layers, kinds)):
        writer.put(f"blk.{layer}.attn_q_norm.weight", block.self_attn.q_norm.weight)
        writer.put(f"blk.{layer}.attn_k_norm.weight", block.self_attn.k_norm.weight)
        writer.put(f"blk.{layer}.ffn_norm.weight", block.post_attention_layernorm.weight)
        writer.put(f"blk.{layer}.ffn_gate_inp.weight", block.mlp.gate.weight)
        experts = block.mlp.experts  # gate_up_proj (E, 2I, C): gate, then up
        width = config.moe_intermediate_size
        writer.put(f"blk.{layer}.ffn_gate_exps.weight", experts.gate_up_proj.data[:, :width], gate)
        writer.put(f"blk.{layer}.ffn_up_exps.weight", experts.gate_up_proj.data[:, width:], up)
        writer.put(f"blk.{layer}.ffn_down_exps.weight", experts.down_proj, down)
    finish(writer, model, seed=42)


def dump_gpt_oss():
    yarn = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    }  # fmt: skip
    config = GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_local_experts=4,
        num_experts_per_tok=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, sliding_window=12,
        max_position_embeddings=512, tie_word_embeddings=False, rope_parameters=yarn,
    )  # fmt: skip
    model = build(config, seed=43)
    writer = Writer("gpt-oss", "gpt-oss", config)
    writer.gguf.add_expert_count(config.num_local_experts)
    writer.gguf.add_expert_used_count(config.num_experts_per_tok)
    writer.gguf.add_expert_feed_forward_length(config.intermediate_size)
    writer.gguf.add_sliding_window(config.sliding_window)
    writer.gguf.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.gguf.add_rope_scaling_factor(yarn["factor"])
    writer.gguf.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
    put_shared(writer, model, Type.F16, dict.fromkeys(["q", "k", "v", "output"], Type.Q8_0))
    writer.put("output.weight", model.lm_head.weight, Type.BF16)
    for layer, block in enumerate(model.model.layers):
        writer.put(f"blk.{layer}.attn_sinks.weight", block.self_attn.sinks)
        writer.put(f"blk.{layer}.post_attention_norm.weight", block.post_attention_layernorm.weight)
        writer.put(f"blk.{layer}.ffn_gate_inp.weight", block.mlp.router.weight)
        writer.put(f"blk.{layer}.ffn_gate_inp.bias", block.mlp.router.bias)
        experts, turned = block.mlp.experts, {"to_file": lambda w: w.mT, "to_model": lambda w: w.mT}
        for at, name in enumerate(["gate", "up"]):  # gate_up_proj (E, C, 2I): in turns
            part = f"blk.{layer}.ffn_{name}_exps"
            writer.put(f"{part}.weight", experts.gate_up_proj.data[..., at::2], Type.MXFP4, **turned)
            writer.put(f"{part}.bias", experts.gate_up_proj_bias.data[:, at::2])
        writer.put(f"blk.{layer}.ffn_down_exps.weight", experts.down_proj, Type.MXFP4, **turned)
        writer.put(f"blk.{layer}.ffn_down_exps.bias", experts.down_proj_bias)
    finish(writer, model, seed=43)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    dump_blocks()
    dump_llama()
    dump_qwen3moe()
    dump_gpt_oss()
