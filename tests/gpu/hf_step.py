"""One training step of a llama in HF transformers, for the ratio to ebbtide's.

`python3 hf_step.py MODEL_DIR SEQ [--offload] [--steps N]`, with MODEL_DIR a folder with a
config.json. Random bf16 weights, gradient checkpointing of every block (with --offload the block
inputs go to pinned host memory), an SGD update of each weight as soon as its gradient is there (as
LOMO does). Prints one JSON line: median seconds of a step, peak bytes allocated and reserved.
"""

import argparse
import json
import statistics
import time

import torch
import torch.utils.checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("seq", type=int)
parser.add_argument("--offload", action="store_true")
parser.add_argument("--steps", type=int, default=3)
args = parser.parse_args()

torch.manual_seed(0)
config = AutoConfig.from_pretrained(args.model)
config.use_cache = False
config.max_position_embeddings = max(config.max_position_embeddings, args.seq)
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(
        config, torch_dtype=torch.bfloat16, attn_implementation="sdpa"
    )
model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()


@torch.no_grad()
def update(weight):
    weight.add_(weight.grad, alpha=-1e-6)
    weight.grad = None


for weight in model.parameters():
    weight.register_post_accumulate_grad_hook(update)

ids = torch.randint(config.vocab_size, (1, args.seq), device="cuda")


def loss_of(hidden):
    """Cross entropy in pieces: the logits of a long sequence do not fit."""
    piece = 4096
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    total = 0.0
    for start in range(0, args.seq, piece):

        def part(rows, wanted):
            logits = model.lm_head(rows).float()
            return torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"
            )

        end = start + piece
        total = total + torch.utils.checkpoint.checkpoint(
            part, hidden[:, start:end], labels[:, start:end], use_reentrant=False
        )
    return total / (args.seq - 1)


def step():
    if args.offload:
        with torch.autograd.graph.save_on_cpu(pin_memory=True):
            hidden = model.model(input_ids=ids).last_hidden_state
            loss = loss_of(hidden)
    else:
        loss = loss_of(model.model(input_ids=ids).last_hidden_state)
    loss.backward()
    return loss.item()


times = []
for number in range(args.steps + 1):
    torch.cuda.synchronize()
    begun = time.perf_counter()
    loss = step()
    torch.cuda.synchronize()
    # The first one does not count.
    if number > 0:
        times.append(time.perf_counter() - begun)
print(
    json.dumps(
        {
            "seq": args.seq,
            "offload": args.offload,
            "step_s": statistics.median(times),
            "loss": loss,
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    )
)
