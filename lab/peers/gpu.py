"""transformers and PEFT on the models that `lathe-gpu-check` wrote: LoRA steps and decoding, the same shapes and tokens.

    python3 gpu.py FOLDER --length 2048 [--nf4] [--targets q_proj,k_proj,v_proj,o_proj] [--decode 128]

Prints tokens a second (the median of five steps after two) and the most memory on the card. bf16, every block
recomputed, LoRA r = 16, AdamW, as Lathe does it. `--nf4` needs bitsandbytes.
"""

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def row(length, vocab_size):
    return [(t * 7919 + t * t * 31) % vocab_size for t in range(length)]


def used_bytes():
    free, total = torch.cuda.mem_get_info()
    return total - free


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--targets", default="all-linear")
    parser.add_argument("--decode", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    quantization = None
    if args.nf4:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    started = time.perf_counter()
    options = {"quantization_config": quantization} if quantization else {}
    model = AutoModelForCausalLM.from_pretrained(
        args.folder, dtype=torch.bfloat16, device_map=args.device, **options
    )
    print(f"loaded in {time.perf_counter() - started:.1f} s")
    vocab_size = model.config.vocab_size
    is_cuda = args.device.startswith("cuda")

    def wait():
        if is_cuda:
            torch.cuda.synchronize()

    if args.decode:
        ids = torch.tensor([row(64, vocab_size)], device=args.device)
        for new in (8, args.decode):
            wait()
            started = time.perf_counter()
            model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
            wait()
            seconds = time.perf_counter() - started
        print(f"decode: {args.decode / seconds:.1f} tok/s, the prompt of 64 included")

    targets = args.targets if args.targets == "all-linear" else args.targets.split(",")
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=is_cuda)
    ids = torch.tensor([row(args.length, vocab_size)], device=args.device)
    seconds = []
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(7):
        wait()
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        wait()
        seconds.append(time.perf_counter() - started)
    speed = args.length / statistics.median(seconds[2:])
    peak = torch.cuda.max_memory_allocated() / 1e9 if is_cuda else 0.0
    print(f"train on {args.length} tokens: {speed:.0f} tok/s, {peak:.1f} GB allocated at most")
    if is_cuda:
        print(f"on the card: {used_bytes() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
