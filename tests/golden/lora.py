"""Dumps PEFT adapters whose A and B are both random, and the logits of the model that wears them:

data/<name>/adapter/                        all seven linears, r 4, alpha 8      -> data/<name>/expected_lora.safetensors
data/tiny-qwen3/adapter-rslora/             q_proj and v_proj only, use_rslora   -> data/tiny-qwen3/expected_lora_rslora.safetensors

for tiny-llama and tiny-qwen3; each expected file holds `ids` (T) i64 and `logits` (T, V) f32.

Run (after models.py): /opt/peers-venv/bin/python tests/golden/lora.py
"""

import torch
from common import DATA, LINEARS, add_lora, load_model, save_adapter, save_expected


def dump(name, adapter, expected, seed, targets, **options):
    model = add_lora(load_model(name), name, targets, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "lora_" in key:
                parameter.normal_(0.0, 0.1, generator=generator)
    save_adapter(model, DATA / name / adapter)
    with model.disable_adapter():
        plain = save_expected(model, DATA / name / expected, num_tokens=48, seed=seed)[1]
    worn = save_expected(model, DATA / name / expected, num_tokens=48, seed=seed)[1]
    print(f"{name}/{adapter}: the adapter moves a logit by {(worn - plain).abs().mean():.3f} on average")


if __name__ == "__main__":
    dump("tiny-llama", "adapter", "expected_lora.safetensors", 11, LINEARS)
    dump("tiny-qwen3", "adapter", "expected_lora.safetensors", 12, LINEARS)
    dump("tiny-qwen3", "adapter-rslora", "expected_lora_rslora.safetensors", 13, ["q_proj", "v_proj"], use_rslora=True)
