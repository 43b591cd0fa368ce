"""Dumps an adapter of every kind that PEFT has and Lathe takes, on tiny models. In data/<name>/kinds/<kind>/:

adapter_config.json, adapter_model.safetensors   PEFT's folder; r 4, alpha 8, everything that learns random
expected.safetensors                             `ids` (T) i64 and `logits` (T, V) f32 of the model that wears it
expected_train.json                              {config, steps: [{loss, grad_norm, lr, loss_tokens}] x 8}, as train.py has it,
                                                 from this adapter on; kinds that are only read have none

| kind          | adapts                                                                          |
|---------------|---------------------------------------------------------------------------------|
| attention     | q, k, v, o beside experts                                                       |
| experts       | `target_parameters`: both stacks of expert matrices                             |
| experts-down  | the down matrices alone, of layer 1, with attention                             |
| experts-in    | gate and up alone                                                               |
| router        | the router, a parameter to PEFT, with attention                                 |
| all-linear    | what PEFT makes of it for Qwen3: attention, router, and experts of twice the rank |
| rslora        | q, v with `use_rslora`                                                          |
| dora          | q, v, down with `use_dora`; -bias: attention with biases, and rsLoRA            |
| dora-nf4      | the same on weights rounded to NF4                                              |
| patterns      | a regular expression, `rank_pattern` and `alpha_pattern`, `exclude_modules`     |
| layers        | `layers_to_transform`                                                           |
| whole         | `modules_to_save`: embedding, output projection, every norm                     |
| whole-tied    | the embedding of a model with tied tables; -head: the head; -both               |

Run (after train.py and experts.py): /opt/peers-venv/bin/python tests/golden/kinds.py
"""

import json
import shutil
from collections import namedtuple

import torch
from common import DATA, add_lora, load_model, save_adapter, save_expected, write_json
from experts import ATTENTION, RUN, load
from nf4 import quantise
from train import UNPACKED, train

Kind = namedtuple("Kind", "model name targets options method", defaults=({}, "lora"))
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WHOLE = ["embed_tokens", "lm_head", "norm"]
LEARNT = [
    Kind("tiny-gpt-oss", "experts", None, dict(target_parameters=EXPERTS)),
    Kind("tiny-gpt-oss-mxfp4", "experts", None, dict(target_parameters=EXPERTS)),
    Kind("tiny-qwen3-moe", "experts", None, dict(target_parameters=EXPERTS)),
    Kind("tiny-qwen3-moe", "attention", ATTENTION),
    Kind("tiny-qwen3", "rslora", ["q_proj", "v_proj"], dict(use_rslora=True)),
    Kind("tiny-qwen3", "dora", ["q_proj", "v_proj", "down_proj"], dict(use_dora=True)),
    Kind("tiny-qwen3", "dora-nf4", ["q_proj", "v_proj", "down_proj"], dict(use_dora=True), "qlora"),
    Kind("tiny-gpt-oss", "dora-bias", ATTENTION, dict(use_dora=True, use_rslora=True)),
    Kind("tiny-gpt-oss", "whole", ["q_proj"], dict(modules_to_save=WHOLE)),
    Kind("tiny-gpt-oss", "router", ["q_proj"], dict(target_parameters=["mlp.router.weight"])),
    Kind("tiny-qwen3-moe", "all-linear", "all-linear"),
    Kind("tiny-qwen3-moe", "whole-tied", ["q_proj"], dict(modules_to_save=["embed_tokens"])),
    Kind("tiny-qwen3-moe", "whole-tied-both", ["q_proj"], dict(modules_to_save=["embed_tokens", "lm_head"])),
]
READ = [
    Kind("tiny-gpt-oss", "experts-down", ["q_proj"], dict(target_parameters=["layers.1.mlp.experts.down_proj"])),
    Kind("tiny-qwen3-moe", "experts-in", None, dict(target_parameters=["experts.gate_up_proj"])),
    Kind("tiny-qwen3-moe", "whole-tied-head", ["q_proj"], dict(modules_to_save=["lm_head"])),
    Kind("tiny-qwen3", "layers", ["k_proj", "o_proj"], dict(layers_to_transform=[1])),
    Kind(
        "tiny-qwen3", "patterns", r".*\.layers\.\d\.(self_attn\.[qv]|mlp\.down)_proj",
        dict(
            rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 3, "down_proj": 5},
            exclude_modules=r".*\.1\.self_attn\.v_proj",
        ),
    ),
]  # fmt: skip


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.requires_grad:
                continue
            noise = torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator)
            parameter.copy_(noise if "lora_A" in name or "lora_B" in name else parameter * (1 + noise))


def dump(kind, seed, learns):
    folder = DATA / kind.model / "kinds" / kind.name
    folder.mkdir(parents=True)
    model = load_model(kind.model) if kind.model == "tiny-qwen3" else load(kind.model)
    if kind.method == "qlora":
        quantise(model, double=False)
    # torch gives the padding's row no gradient; in these rows it is a token like any other.
    model.get_input_embeddings().padding_idx = None
    model = add_lora(model, kind.model, kind.targets, **kind.options)
    randomise(model, seed)
    save_adapter(model, folder)
    with model.disable_adapter():
        plain = model(torch.arange(16)[None]).logits
    moved = (model(torch.arange(16)[None]).logits - plain).abs().mean()
    save_expected(model, folder / "expected.safetensors", num_tokens=16, seed=seed)
    print(f"{kind.model} {kind.name}: it moves a logit by {moved:.3f} on average")
    if not learns:
        return
    rows = json.loads((DATA / kind.model / "expected_tokens.json").read_text())
    config = (UNPACKED if kind.model == "tiny-qwen3" else RUN) | {"method": kind.method}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decay = config["weight_decay"]
    groups = [
        {"params": [parameter for name, parameter in named if "norm" not in name], "weight_decay": decay},
        {"params": [parameter for name, parameter in named if "norm" in name], "weight_decay": 0.0},
    ]
    steps = train(model, rows, config, groups)
    write_json(folder / "expected_train.json", {"config": config, "steps": steps}, indent=1)
    for step in steps:
        print("  ", step)


if __name__ == "__main__":
    for folder in DATA.glob("*/kinds"):
        shutil.rmtree(folder)
    for number, kind in enumerate(LEARNT + READ):
        dump(kind, 100 + number, kind in LEARNT)
