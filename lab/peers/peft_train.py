"""Trains a LoRA adapter with transformers + peft on the CPU as Hugging Face's Trainer would, and prints its speed as one JSON line:
{non_pad_tokens_per_second, steps, tokens, seconds, peak_rss_bytes, losses}.

peft_train.py --model HF_DIR --rows ROWS.jsonl --batch-size B --steps N --threads 2 --r 16 --alpha 32 [--lr 2e-4]

Rows are tokenised beforehand: {"ids": […], "mask": […]} a line, mask 1 where the loss counts. They are taken in order, again
from the first when they run out, B a step, padded on the right to the longest of the batch. fp32, no gradient checkpointing, dropout 0.
The first batch is a warm-up step that neither the time nor the losses include; its update stays.
"""

import argparse
import itertools
import json
import os
import resource
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def collate(rows):
    """Right-padded ids, attention mask and labels, each (B, T)."""
    length = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention_mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        row_ids, mask = torch.tensor(row["ids"]), torch.tensor(row["mask"])
        ids[index, : len(row_ids)] = row_ids
        attention_mask[index, : len(row_ids)] = 1
        labels[index, : len(row_ids)] = torch.where(mask == 1, row_ids, -100)
    return {"input_ids": ids, "attention_mask": attention_mask, "labels": labels}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4)
    args = parser.parse_args()

    disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with open(args.rows, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.config.use_cache = False
    config = LoraConfig(r=args.r, lora_alpha=args.alpha, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.lr, weight_decay=0.0)

    cycle = itertools.cycle(rows)
    losses, tokens, seconds = [], 0, 0.0
    for step in range(args.steps + 1):
        batch = collate(list(itertools.islice(cycle, args.batch_size)))
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        if step > 0:
            seconds += time.perf_counter() - start
            tokens += int(batch["attention_mask"].sum())
            losses.append(value)

    report = {
        "non_pad_tokens_per_second": tokens / seconds,
        "steps": args.steps,
        "tokens": tokens,
        "seconds": seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
