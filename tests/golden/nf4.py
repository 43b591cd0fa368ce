"""Dumps NF4 as bitsandbytes computes it, and models and a QLoRA run on such weights.

data/nf4.safetensors    NAME.{weight, codes, absmax, values} of four weights; NAME.nested_{codes, absmax, offset, values} with
                        absmax quantised too; scales.*: 600 scales alone; nested_quant_map (256)
data/tiny-qwen3/expected_nf4.safetensors      logits with the blocks' linears quantised and dequantised
data/tiny-qwen3/expected_train_nf4.json       eight QLoRA steps on them, as train.py's unpacked ones, from its init/
data/tiny-{llama,qwen3}-nf4/                  the model as bitsandbytes stores it (qwen3 with double quantisation), its logits
data/tiny-{gpt-oss,qwen3-moe}-nf4/            likewise with one linear an expert (gpt-oss with double quantisation)
data/tiny-gpt-oss/expected_train_nf4.json     eight QLoRA steps with double quantisation, as experts.py's, from its init/

The models run on dequantised weights in f32, so nothing but the quantisation is bitsandbytes'.

Run (after train.py and experts.py): /opt/peers-venv/bin/python tests/golden/nf4.py
"""

import json

import bitsandbytes.functional as bnb
import torch
from common import DATA, LINEARS, load_model, save_expected, write_json
from experts import RUN
from peft import PeftModel
from safetensors.torch import save_file
from train import UNPACKED, train


def is_quantised(name):
    return name.endswith(".weight") and name.split(".")[-2] in LINEARS


def dequantise(codes, state):
    """By rows of one block: the CPU kernel of 0.50.2 begins a block with each row, while codes and CUDA's kernel do not."""
    shape, state.shape = state.shape, torch.Size((codes.numel() * 2 // 64, 64))
    values = bnb.dequantize_4bit(codes, state).reshape(shape)
    state.shape = shape
    return values


def dump_tensors():
    generator = torch.Generator().manual_seed(4)
    outliers = torch.randn((4, 640), generator=generator)
    outliers[0, :64] = 0
    outliers[1, 5] = 80
    weights = {
        "normal": torch.randn((5, 512), generator=generator) * 0.02,
        "narrow": torch.randn((8, 96), generator=generator),
        "outliers": outliers,
        "bf16": (torch.randn((20, 64), generator=generator) * 0.05).bfloat16(),
    }
    tensors = {}
    for name, weight in weights.items():
        codes, state = bnb.quantize_4bit(weight.float(), quant_type="nf4")
        nested_codes, nested = bnb.quantize_4bit(weight.float(), quant_type="nf4", compress_statistics=True)
        assert torch.equal(codes, nested_codes)
        tensors |= {
            f"{name}.weight": weight,
            f"{name}.codes": codes,
            f"{name}.absmax": state.absmax,
            f"{name}.values": dequantise(codes, state),
            f"{name}.nested_codes": nested.absmax,
            f"{name}.nested_absmax": nested.state2.absmax,
            f"{name}.nested_offset": nested.offset.reshape(1),
            f"{name}.nested_values": dequantise(codes, nested),
        }
    scales = torch.rand(600, generator=generator) * 0.1
    offset = scales.mean()
    codes, state = bnb.quantize_blockwise(scales - offset, blocksize=256)
    tensors |= {
        "scales.codes": codes,
        "scales.absmax": state.absmax,
        "scales.offset": offset.reshape(1),
        "scales.values": bnb.dequantize_blockwise(codes, state) + offset,
    }
    save_file(tensors | {"nested_quant_map": nested.state2.code}, DATA / "nf4.safetensors")


def store(stored, name, weight, double):
    """Adds a weight as bitsandbytes stores it; returns its dequantised values."""
    codes, state = bnb.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=double)
    stored[name] = codes
    stored |= {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
    return dequantise(codes, state)


@torch.no_grad()
def quantise(model, double):
    """Replaces the blocks' linears by their dequantised values; returns every tensor as bitsandbytes stores it."""
    stored = {}
    for name, parameter in model.named_parameters():
        if is_quantised(name):
            parameter.copy_(store(stored, name, parameter.data, double))
        elif ".experts." in name:
            quantise_experts(stored, name, parameter, model.config.model_type == "gpt_oss", double)
        else:
            stored[name] = parameter.data.clone()
    return stored


def quantise_experts(stored, name, parameter, is_gpt_oss, double):
    """One linear an expert: as unsloth names gpt-oss', as transformers 4 does Qwen3's."""
    module, part = name.rsplit(".", 1)
    for expert, weight in enumerate(parameter.data):
        if part.endswith("_bias"):
            stored[f"{module}.{part.removesuffix('_bias')}s.{expert}.bias"] = weight.clone()
        elif is_gpt_oss:
            weight.copy_(store(stored, f"{module}.{part}s.{expert}.weight", weight.mT, double).mT)
        elif part == "gate_up_proj":
            for half, projection in zip(weight.chunk(2), ["gate_proj", "up_proj"]):
                half.copy_(store(stored, f"{module}.{expert}.{projection}.weight", half, double))
        else:
            weight.copy_(store(stored, f"{module}.{expert}.{part}.weight", weight, double))


def dump_stored(source, double):
    model = load_model(source)
    tensors = quantise(model, double)
    folder = DATA / f"{source}-nf4"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((DATA / source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": "float32",
    }  # fmt: skip
    write_json(folder / "config.json", config, indent=2)
    save_expected(model, folder / "expected.safetensors", num_tokens=24, seed=5)
    return model


def dump_run_on_experts(model):
    run_qlora(model, DATA / "tiny-gpt-oss", RUN | {"method": "qlora", "quant": "nf4_double"})


def dump_run(name):
    folder = DATA / name
    model = load_model(name)
    quantise(model, double=False)
    save_expected(model, folder / "expected_nf4.safetensors", num_tokens=24, seed=5)
    run_qlora(model, folder, UNPACKED | {"method": "qlora"})


def run_qlora(model, folder, config):
    model = PeftModel.from_pretrained(model, folder / "init", is_trainable=True)
    rows = json.loads((folder / "expected_tokens.json").read_text())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = train(model, rows, config, [{"params": trainable, "weight_decay": config["weight_decay"]}])
    write_json(folder / "expected_train_nf4.json", {"config": config, "steps": steps}, indent=1)
    for step in steps:
        print("  ", step)


if __name__ == "__main__":
    dump_tensors()
    dump_stored("tiny-llama", double=False)
    dump_stored("tiny-qwen3", double=True)
    dump_run("tiny-qwen3")
    dump_stored("tiny-qwen3-moe", double=False)
    gpt_oss = dump_stored("tiny-gpt-oss", double=True)
    run_qlora(gpt_oss, DATA / "tiny-gpt-oss", RUN | {"method": "qlora", "quant": "nf4_double"})
