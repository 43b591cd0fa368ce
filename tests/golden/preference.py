"""Dumps preference training by TRL, DPO and ORPO, of tiny-qwen3 with its adapter init/ and whole. In data/tiny-qwen3/preference/:

conversations.jsonl, implicit.jsonl, strings.jsonl   the same 12 pairs with the prompt as messages, inside both sides, as text
expected_tokens.json     {file: [{prompt, chosen, rejected}]}: the ids TRL's DPO trainer makes of each
expected_train.json      {name: {data, config, steps, eval}}: config has Lathe's keys, steps are the eight of training, eval
                         is of the same pairs after them. Names of metrics are TRL's, without `rewards/`.

A step's numbers are means over its micro-batches, which are of one size. Of ORPO, whose likelihood loss is a mean over
a micro-batch's tokens, a step is one micro-batch; its rows are text, since TRL ends a chat's last turn twice.

Run (after train.py): /opt/peers-venv/bin/python tests/golden/preference.py
"""

import json
import os
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from common import DATA, load_model, load_tokenizer, write_json  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

disable_progress_bars()

NAME = "tiny-qwen3"
FOLDER = DATA / NAME / "preference"

PAIRS = [
    ("What is the capital of France?", "Paris.", "The capital of France is a city that is called Paris."),
    ("Hi", "Hello!", "Hello there! How can I help you with anything at all today?"),
    ("Name a colour.", "Blue.", "There are many colours. One that many people like is blue."),
    ("2 + 2?", "4", "2 + 2 is the sum of two and two, which is 4."),
    ("Is water wet?", "Yes.", "That depends on what is meant by wet, but most would say so."),
    ("Sort a list in Python?", "`sorted(xs)`", "Python has two ways, and to sort you can use either of them."),
    ("What does a lathe do?", "It turns the work.", "A lathe is a machine tool."),
    ("Wie sagt man „danke“ auf Japanisch?", "ありがとう", "Man sagt ありがとう (arigatō). 🙂"),
    ("Count to five.", "1, 2, 3, 4, 5", "One, then two, then three, then four, and at last five."),
    ("A word that rhymes with tool?", "Cool.", "Pool, rule, school: which do you like?"),
    ("Thanks", "Any time.", "You are welcome, and do ask again if there is something else!"),
    ("Translate to French: the wind", "le vent", "The translation of the wind to French is: le vent"),
]

SHARED = dict(
    method="lora", shuffle=False, max_steps=8, optimizer="adamw", learning_rate=1e-2, warmup_steps=2, schedule="linear",
    weight_decay=0.01, max_grad_norm=1.0, max_seq_len=512, packing=False,
)  # fmt: skip
RUNS = {
    "dpo": ("conversations", SHARED | dict(objective="dpo", beta=0.1, batch_size=2, grad_accum=2)),
    "dpo-cut": ("implicit", SHARED | dict(objective="dpo", beta=0.3, batch_size=4, grad_accum=1, max_seq_len=48)),
    "dpo-full": (
        "strings",
        SHARED | dict(objective="dpo", beta=0.1, batch_size=2, grad_accum=2, method="full", learning_rate=1e-3),
    ),
    "orpo": ("strings", SHARED | dict(objective="orpo", beta=0.2, batch_size=4, grad_accum=1)),
}


def rows(form):
    for prompt, chosen, rejected in PAIRS:
        if form == "strings":
            yield {"prompt": f"Q: {prompt}\nA:", "chosen": f" {chosen}", "rejected": f" {rejected}"}
            continue
        asked = [{"role": "user", "content": prompt}]
        sides = {
            side: [{"role": "assistant", "content": text}] for side, text in (("chosen", chosen), ("rejected", rejected))
        }
        if form == "implicit":
            yield {side: asked + messages for side, messages in sides.items()}
        else:
            yield {"prompt": asked} | sides


def recording(trainer_class):
    """The trainer, which takes the rows in order and keeps what every step says."""

    class Recording(trainer_class):
        def __init__(self, *args, **kwargs):
            self.losses, self.steps = [], []
            super().__init__(*args, **kwargs)

        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

        def log(self, logs, start_time=None):
            super().log(logs, start_time)
            if "grad_norm" in logs:
                loss = sum(self.losses) / len(self.losses)
                self.losses.clear()
                self.steps.append({"loss": loss, "grad_norm": float(logs["grad_norm"])} | metrics(logs))

    return Recording


KEPT = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "nll_loss", "log_odds_ratio",
        "log_odds_chosen"]  # fmt: skip


def metrics(logs, prefix=""):
    return {key.removeprefix("rewards/"): logs[prefix + key] for key in KEPT if prefix + key in logs}


def run(data, config, out):
    is_dpo = config["objective"] == "dpo"
    model = load_model(NAME)
    if config["method"] == "lora":
        model = PeftModel.from_pretrained(model, DATA / NAME / "init", is_trainable=True)
    options = {"precompute_ref_log_probs": True} if config["method"] == "full" else {}
    args = (DPOConfig if is_dpo else ORPOConfig)(
        output_dir=out, beta=config["beta"], max_length=config["max_seq_len"], max_steps=config["max_steps"],
        per_device_train_batch_size=config["batch_size"], gradient_accumulation_steps=config["grad_accum"],
        per_device_eval_batch_size=len(PAIRS), learning_rate=config["learning_rate"],
        lr_scheduler_type=config["schedule"], warmup_steps=config["warmup_steps"], weight_decay=config["weight_decay"],
        max_grad_norm=config["max_grad_norm"], optim="adamw_torch", logging_steps=1, save_strategy="no", bf16=False,
        gradient_checkpointing=False, use_cpu=True, report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    dataset = Dataset.from_list(list(rows(data)))
    trainer = recording(DPOTrainer if is_dpo else ORPOTrainer)(
        model=model, args=args, train_dataset=dataset, eval_dataset=dataset, processing_class=load_tokenizer(NAME)
    )
    trainer.train()
    logs = trainer.evaluate()
    evaluated = {"loss": logs["eval_loss"]} | metrics(logs, "eval_")
    sides = ("prompt", "chosen", "rejected")
    tokens = [{side: row[f"{side}_ids"] for side in sides} for row in trainer.train_dataset] if is_dpo else None
    return {"data": data, "config": config, "steps": trainer.steps, "eval": evaluated}, tokens


def main():
    FOLDER.mkdir(exist_ok=True)
    expected, expected_tokens = {}, {}
    for form in ("conversations", "implicit", "strings"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(form)]
        (FOLDER / f"{form}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, (data, config) in RUNS.items():
        with tempfile.TemporaryDirectory() as out:
            expected[name], tokens = run(data, config, out)
        if tokens:
            expected_tokens[data] = tokens
        print(name, *expected[name]["steps"], expected[name]["eval"], sep="\n  ")
    write_json(FOLDER / "expected_tokens.json", expected_tokens)
    write_json(FOLDER / "expected_train.json", expected, indent=1)


if __name__ == "__main__":
    main()
