"""Make the voice in the box from a trained checkpoint: what is in this folder, but for this file and the card.

    python voice/make_voice.py gpt_checkpoints          a folder, of which the best checkpoint is taken, or a file
    python voice/make_voice.py first second             the second run went on from what the first had made

Weights in half precision, in safetensors, in Hugging Face's format for GPT-2, so that transformers can read them, too.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import golpo_utils as golpo  # noqa: E402

runs = [golpo.load_storyteller(source, which="best") for source in sys.argv[1:]]
model, tokenizer, about = runs[-1]
golpo.export_hf(model, tokenizer, golpo.VOICE, dtype=torch.float16, about={
    "global_step": sum(about["global_step"] for *_, about in runs), "tokens_seen": sum(about["tokens_seen"] for *_, about in runs),
    "val_losses": [about["best_val_loss"]],
    "settings": {name: about["settings"][name] for name in ("validation_fraction", "seed")}})
for file in sorted(golpo.VOICE.iterdir()):
    print(f"{file.stat().st_size / 1e6:8.3f} MB  {file.name}")
