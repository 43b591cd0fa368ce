"""Dumps four steps of full fine-tuning of tiny-qwen3 into data/tiny-qwen3/expected_full.json: {config, steps: [{loss,
grad_norm, lr, loss_tokens}], decayed: [names]}. The rows are those of train.py; a step is two of them. As in Hugging Face's Trainer,
matrices (the tied embedding among them) have weight decay 0.01, norms and biases none.

Run (after models.py and train.py): /opt/peers-venv/bin/python tests/golden/full.py
"""

import json

from common import DATA, load_model, write_json
from train import SHARED, train

CONFIG = SHARED | dict(
    method="full", packing=False, max_seq_len=512, batch_size=2, grad_accum=1, max_steps=4,
    learning_rate=1e-3, schedule="constant", warmup_steps=0,
)  # fmt: skip
del CONFIG["lora"]


def main():
    folder = DATA / "tiny-qwen3"
    rows = json.loads((folder / "expected_tokens.json").read_text())
    model = load_model("tiny-qwen3").train()
    named = dict(model.named_parameters())
    decayed = sorted(name for name in named if "norm" not in name and not name.endswith("bias"))
    groups = [
        {"params": [named[name] for name in decayed], "weight_decay": CONFIG["weight_decay"]},
        {"params": [named[name] for name in sorted(set(named) - set(decayed))], "weight_decay": 0.0},
    ]
    steps = train(model, rows, CONFIG, groups)
    write_json(folder / "expected_full.json", {"config": CONFIG, "steps": steps, "decayed": decayed}, indent=1)
    for step in steps:
        print(step)


if __name__ == "__main__":
    main()
