"""Dumps LoRA training runs of tiny-llama and tiny-qwen3, step by step. In data/<name>/:

rows.jsonl                  23 conversations (`messages`)
expected_tokens.json        [{ids, mask}] a row: the template's tokens, untruncated; mask 1 where the assistant wrote
init/                       the PEFT adapter the runs start from (r 4, alpha 8, seven linears, B zero)
expected_train.json         {unpacked, packed}: {config, steps: [{loss, grad_norm, lr, loss_tokens}] x 8}; config has Lathe's keys
final-unpacked/, final-packed/   adapter_model.safetensors after step 8

unpacked: a micro-batch is two consecutive rows, a step four; `linear` schedule. packed: rows fill sequences of 128 tokens
by next-fit (a longer row is cut to 128), a step is two sequences; `cosine` schedule. Both: no shuffling, an epoch's last
window may be smaller and is a step of its own, the next epoch begins a new one. Rows attend to themselves only, with
positions from 0, so each is simply run alone here. Targets are the next tokens; token t counts if mask[t] is 1.
The loss is the sum over the window's counted tokens divided by their number; grad_norm is before clipping; lr is the one used.

Run (after models.py): /opt/peers-venv/bin/python tests/golden/train.py
"""

import json

import torch
from common import DATA, LINEARS, add_lora, load_model, load_tokenizer, save_adapter, write_json
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import get_scheduler

SHARED = dict(
    method="lora", shuffle=False, grad_accum=2, max_steps=8, optimizer="adamw", learning_rate=1e-2, warmup_steps=2,
    weight_decay=0.01, max_grad_norm=1.0, lora={"r": 4, "alpha": 8, "dropout": 0.0, "targets": LINEARS},
)  # fmt: skip
UNPACKED = SHARED | dict(packing=False, max_seq_len=512, batch_size=2, schedule="linear")
PACKED = SHARED | dict(packing=True, max_seq_len=128, batch_size=1, schedule="cosine")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


CONVERSATIONS = [
    [user("What is the capital of France?"), assistant("The capital of France is Paris.")],
    [user("Hi"), assistant("Hello! How can I help you today?")],
    [system("You are a helpful assistant."), user("Name a colour."), assistant("Blue.")],
    [user("2 + 2?"), assistant("4"), user("And 3 * 7?"), assistant("21")],
    [
        user("Write a short poem about the sea."),
        assistant("The sea is wide, the sea is deep,\nit sings the harbour boats to sleep."),
    ],
    [system("Answer in one word."), user("Is water wet?"), assistant("Yes")],
    [user("How do I sort a list in Python?"), assistant("Use `sorted(xs)` or `xs.sort()`.")],
    [
        user("Explain what a lathe does, please, and say why it matters."),
        assistant(
            "A lathe turns the work while a tool stays still and shapes it. Whatever comes off it is round: a chair leg, "
            "a bowl, a screw. It matters because it is the one machine tool that can make the parts of another lathe."
        ),
    ],
    [user("ok"), assistant("Great.")],
    [user("Wie sagt man „danke“ auf Japanisch?"), assistant("Man sagt ありがとう (arigatō). 🙂")],
    [
        system("You speak like a pirate."),
        user("Who are you?"),
        assistant("Arr, a helpful assistant be I!"),
        user("And the sea?"),
        assistant("She be me home."),
    ],
    [user("Count to five."), assistant("1, 2, 3, 4, 5")],
    [user("What's 10% of 250?"), assistant("25")],
    [user("A word that rhymes with tool?"), assistant("Cool.\n\nAlso: pool, rule, school.")],
    [user("Thanks"), assistant("You're welcome")],
    [system("Reply with JSON only."), user("Name and age of Ann, 31"), assistant('{"name": "Ann", "age": 31}')],
    [user("Translate to French: the wind"), assistant("le vent")],
    [
        user("Is there a largest prime?"),
        assistant("No."),
        user("Why?"),
        assistant("Multiply them all and add one."),
        user("Thank you!"),
        assistant("Any time."),
    ],
    [user("Spell 'assistant'."), assistant("a-s-s-i-s-t-a-n-t")],
    [user("   "), assistant("Did you mean to ask something?")],
    [user("Give me code."), assistant("fn main() {\n    println!(\"hi\");\n}\n")],
    [user("Bye"), assistant("Goodbye")],
    [user("One more: what turns the wood?"), assistant("The lathe turns the wood, the tool shapes it.")],
]


def encode(tokenizer, messages):
    out = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    return {"ids": list(out["input_ids"]), "mask": list(out["assistant_masks"])}


def pack_next_fit(rows, max_seq_len):
    """Sequences of whole rows, in order: a row that does not fit begins the next sequence."""
    sequences, room = [], 0
    for row in rows:
        if len(row["ids"]) > room:
            sequences.append([])
            room = max_seq_len
        sequences[-1].append(row)
        room -= len(row["ids"])
    return sequences


def windows(rows, config):
    """One epoch's optimizer steps, each a list of rows."""
    cut = config["max_seq_len"]
    rows = [{"ids": row["ids"][:cut], "mask": row["mask"][:cut]} for row in rows]
    sequences = pack_next_fit(rows, cut) if config["packing"] else [[row] for row in rows]
    size = config["batch_size"] * config["grad_accum"]
    for start in range(0, len(sequences), size):
        yield [row for sequence in sequences[start : start + size] for row in sequence]


def summed_loss(model, row):
    """The cross-entropy summed over the row's counted targets, and their number."""
    ids, mask = torch.tensor(row["ids"]), torch.tensor(row["mask"])
    targets = torch.where(mask == 1, ids, -100)[1:]
    logits = model(ids[None]).logits[0, :-1].float()
    return cross_entropy(logits, targets, ignore_index=-100, reduction="sum"), int((targets != -100).sum())


def train(model, rows, config, parameter_groups):
    """The reported steps of one run. `rows` cycle until max_steps."""
    optimizer = torch.optim.AdamW(parameter_groups, lr=config["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    scheduler = get_scheduler(config["schedule"], optimizer, config["warmup_steps"], config["max_steps"])
    parameters = [parameter for group in parameter_groups for parameter in group["params"]]
    steps = []
    while True:
        for window in windows(rows, config):
            losses, counts = zip(*(summed_loss(model, row) for row in window), strict=True)
            loss = sum(losses) / sum(counts)
            optimizer.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config["max_grad_norm"])
            lr = scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()
            steps.append({"loss": loss.item(), "grad_norm": grad_norm.item(), "lr": lr, "loss_tokens": sum(counts)})
            if len(steps) == config["max_steps"]:
                return steps


def start_adapter(name):
    """The model with the adapter that every run starts from, saved as init/."""
    torch.manual_seed(21)  # PEFT draws A from torch's global generator
    model = add_lora(load_model(name), name, LINEARS, lora_dropout=0.0)
    save_adapter(model, DATA / name / "init")
    return model


def dump(name):
    folder = DATA / name
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in CONVERSATIONS]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(name)
    rows = [encode(tokenizer, messages) for messages in CONVERSATIONS]
    write_json(folder / "expected_tokens.json", rows)

    expected = {}
    for setting, config in (("unpacked", UNPACKED), ("packed", PACKED)):
        model = start_adapter(name)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        steps = train(model, rows, config, [{"params": trainable, "weight_decay": config["weight_decay"]}])
        expected[setting] = {"config": config, "steps": steps}
        final = folder / f"final-{setting}"
        save_adapter(model, final)
        (final / "adapter_config.json").unlink()
        before, after = (load_file(path / "adapter_model.safetensors") for path in (folder / "init", final))
        moved = max((after[key] - before[key]).abs().max().item() for key in before)
        print(f"{name} {setting}: greatest change of a weight {moved:.4f}")
        for step in steps:
            print("  ", step)
    write_json(folder / "expected_train.json", expected, indent=1)


if __name__ == "__main__":
    dump("tiny-llama")
    dump("tiny-qwen3")
