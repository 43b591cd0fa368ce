"""Writes `logits` (T, V) f32 of a Hugging Face model, with a PEFT adapter if one is named, for comparison with `lathe logits`;
prints {tokens, vocab} as one JSON line.

peft_logits.py --model DIR [--adapter DIR] --ids 1,2,3 --out F.safetensors [--threads 2]
"""

import argparse
import json
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--ids", required=True, help="comma-separated token ids")
    parser.add_argument("--out", required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    disable_progress_bar()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    if args.adapter:
        model = PeftModel.from_pretrained(model, args.adapter)
    ids = torch.tensor([[int(token) for token in args.ids.split(",")]])
    logits = model.eval()(ids).logits[0].float().contiguous()
    save_file({"logits": logits}, args.out)
    print(json.dumps({"tokens": logits.shape[0], "vocab": logits.shape[1]}))


if __name__ == "__main__":
    main()
