"""Dumps tiny random mixtures of experts, with logits and (gpt-oss) a training run. In data/<name>/:

config.json, model.safetensors   the model
expected.safetensors             `ids` (T) i64 and `logits` (T, V) f32
init/                            the PEFT adapter the run starts from (r 4, alpha 8, attention only, B zero)
expected_tokens.json             [{ids, mask}]: rows of random tokens
expected_train.json              {config, steps: [{loss, grad_norm, lr, loss_tokens}] x 8}, as train.py has it
expected_gradients.safetensors   of the mean loss of row 0, from an adapter whose B is not zero: `A` and `B` as they
                                 were, under PEFT's names, and `grad.<name>` (tiny-gpt-oss only)

| name               | experts    | what else it covers                                                               |
|--------------------|------------|-----------------------------------------------------------------------------------|
| tiny-gpt-oss       | dense fp32 | truncated YaRN; config.json in transformers v5 spelling                           |
| tiny-gpt-oss-mxfp4 | MXFP4      | YaRN as gpt-oss has it; v4 spelling; layer types that do not alternate; low clamp |
| tiny-qwen3-moe     | one linear an expert, fp32 | logits and rows only: router and experts of Qwen3, tied embeddings |
| tiny-qwen3-moe-some-dense | likewise | logits only: three of four layers dense, the router's weights not made to sum to 1        |

The first two have windows shorter than their rows and sinks large enough to matter. MXFP4 is quantised here, plainly; what is
measured is the model that transformers makes of it, dequantised.

Run: /opt/peers-venv/bin/python tests/golden/experts.py
"""

import json
import shutil

import torch
from common import DATA, add_lora, load_model, save_adapter, save_expected, write_json
from safetensors.torch import load_file, save_file
from train import PACKED, summed_loss, train
from transformers import AutoModelForCausalLM, GptOssConfig, Mxfp4Config, Qwen3MoeConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

VOCAB_SIZE = 64
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
RUN = PACKED | dict(lora=PACKED["lora"] | {"targets": ATTENTION}, max_seq_len=64, learning_rate=3e-3)


def randomise(model, seed):
    """Weights large enough that attention, routing and logits are not flat; norms scattered around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            is_norm = "norm" in name
            std = 1.0 if name.endswith(("sinks", "router.weight", "mlp.gate.weight")) else 0.3
            parameter.normal_(1.0 if is_norm else 0.0, 0.2 if is_norm else std, generator=generator)


def quantise(weights):
    """(E, C, O) as blocks (E, O, C/32, 16) u8, low nibble first, and scales (E, O, C/32) u8: nearest values."""
    weights = weights.transpose(1, 2)
    weights = weights.reshape(*weights.shape[:2], -1, 32)
    exponents = torch.floor(torch.log2(weights.abs().amax(-1))) - 2  # the greatest value becomes 4 to 8
    scaled = weights / torch.exp2(exponents)[..., None]
    codes = (scaled.abs()[..., None] - FP4).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    return blocks.to(torch.uint8).contiguous(), (exponents + 127).to(torch.uint8)


def pack(folder):
    """Replaces the folder's experts by MXFP4 and says so in its config, spelled as gpt-oss' own."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales = quantise(tensors.pop(name))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, path, metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    modules = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": modules}
    write_json(path, config, indent=2)


def load(name):
    """The model in fp32, dequantised by transformers."""
    if not name.endswith("mxfp4"):
        return load_model(name)
    options = dict(dtype=torch.float32, attn_implementation="eager", quantization_config=Mxfp4Config(dequantize=True))
    model = AutoModelForCausalLM.from_pretrained(DATA / name, **options).eval().float()
    model.is_quantized = False  # it is not, any more, and PEFT is to treat it so
    packed = load_file(DATA / name / "model.safetensors")
    key = "model.layers.1.mlp.experts.gate_up_proj"
    exact = convert_moe_packed_tensors(packed[f"{key}_blocks"], packed[f"{key}_scales"], dtype=torch.float32)
    assert torch.equal(exact, model.get_parameter(key))
    return model


def random_rows(seed):
    generator = torch.Generator().manual_seed(seed)

    def row():
        length = int(torch.randint(12, 60, (), generator=generator))
        ids = torch.randint(VOCAB_SIZE, (length,), generator=generator)
        return {"ids": ids.tolist(), "mask": [int(t >= length // 3) for t in range(length)]}

    return [row() for _ in range(16)]


def dump_gradients(model, row, path):
    generator = torch.Generator().manual_seed(5)
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in sorted(named.items()):
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    loss, count = summed_loss(model, row)
    (loss / count).backward()
    gradients = {f"grad.{name}": parameter.grad for name, parameter in named.items()}
    save_file({name: parameter.detach() for name, parameter in named.items()} | gradients, path)


def dump_model(name, seed, config, num_tokens):
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    if name.endswith("mxfp4"):
        pack(folder)
    ids, logits = save_expected(load(name), folder / "expected.safetensors", num_tokens, seed)
    print(f"{name}: logits std {logits.std():.3f}, greatest {logits.abs().max():.2f}")


def dump(name, seed, **options):
    folder = DATA / name
    config = GptOssConfig(**SHAPE, num_local_experts=4, sliding_window=12, tie_word_embeddings=False, **options)
    dump_model(name, seed, config, num_tokens=72)
    rows = random_rows(seed)
    write_json(folder / "expected_tokens.json", rows)
    torch.manual_seed(21)  # PEFT draws A from torch's global generator
    model = add_lora(load(name), name, ATTENTION, lora_dropout=0.0)
    save_adapter(model, folder / "init")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = train(model, rows, RUN, [{"params": trainable, "weight_decay": RUN["weight_decay"]}])
    write_json(folder / "expected_train.json", {"config": RUN, "steps": steps}, indent=1)
    for step in steps:
        print("  ", step)
    if name == "tiny-gpt-oss":
        model.zero_grad()
        dump_gradients(model, rows[0], folder / "expected_gradients.safetensors")


SHAPE = dict(
    vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, max_position_embeddings=512, num_experts_per_tok=2,
    pad_token_id=0, eos_token_id=2,
)  # fmt: skip

if __name__ == "__main__":
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    dump(
        "tiny-gpt-oss", 31, intermediate_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        rope_parameters=yarn | {"beta_fast": 4.0, "beta_slow": 1.0, "truncate": True},
    )  # fmt: skip
    dump(
        "tiny-gpt-oss-mxfp4", 32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        rope_parameters=yarn | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        layer_types=["full_attention", "sliding_attention"], swiglu_limit=0.8,
    )  # fmt: skip
    qwen3 = Qwen3MoeConfig(
        **SHAPE, moe_intermediate_size=8, intermediate_size=8, num_experts=4, norm_topk_prob=True, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    dump_model("tiny-qwen3-moe", 33, qwen3, num_tokens=40)
    write_json(DATA / "tiny-qwen3-moe" / "expected_tokens.json", random_rows(33))
    some_dense = Qwen3MoeConfig(
        **SHAPE | dict(num_hidden_layers=4), moe_intermediate_size=8, intermediate_size=12, num_experts=4, norm_topk_prob=False,
        decoder_sparse_step=2, mlp_only_layers=[3], head_dim=8, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    dump_model("tiny-qwen3-moe-some-dense", 34, some_dense, num_tokens=40)
