"""What the golden scripts share: where the data lies, how a model is loaded, how its logits are taken.

The goldens are numbers from the reference implementations (torch, transformers, peft, TRL, llama.cpp) that the Rust
tests compare with. Nothing in the repository needs Python: run a script again only to change what it dumps.

    python3 -m venv /opt/peers-venv && /opt/peers-venv/bin/pip install -r tests/golden/requirements.txt
    /opt/peers-venv/bin/python tests/golden/models.py
    # then lora.py, train.py, styles.py, preference.py, full.py, nf4.py, experts.py, kinds.py, adamw8bit.py, gguf_models.py, hf_cache.py, templates.py,
    # tokenizers_gguf.py, pre_tokenizers.py
"""

import json
import os
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore", category=FutureWarning)

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

disable_progress_bar()

DATA = Path(__file__).resolve().parent / "data"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# One thread and plain attention: the same sums in the same order on every run.
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def load_model(name):
    """The tiny model `name` of models.py, fp32, in evaluation mode (none has dropout)."""
    return AutoModelForCausalLM.from_pretrained(DATA / name, dtype=torch.float32, attn_implementation="eager").eval()


def load_tokenizer(name):
    return AutoTokenizer.from_pretrained(DATA / name)


@torch.no_grad()
def save_expected(model, path, num_tokens, seed):
    """Writes `ids` (T) i64, drawn from the whole vocabulary, and `logits` (T, V) f32."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (num_tokens,), generator=generator)
    logits = model(ids[None]).logits[0].float()
    save_file({"ids": ids, "logits": logits.contiguous()}, path)
    return ids, logits


def add_lora(model, name, targets, **options):
    """The model with a fresh rank-4 adapter (alpha 8) that says it belongs to the base model `name`."""
    model.name_or_path = name
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options)
    return get_peft_model(model, config)


def save_adapter(model, folder):
    """PEFT's own folder, without its README and with the targets, Python sets, in a fixed order."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for key in ("target_modules", "target_parameters", "modules_to_save"):
        if isinstance(config[key], list):
            config[key].sort()
    write_json(path, config, indent=2)


def write_json(path, value, indent=None):
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))
    path.write_text(text + "\n", encoding="utf-8")
