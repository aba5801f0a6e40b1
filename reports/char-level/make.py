"""Trains a small llama on characters with transformers and PyTorch, for others to be compared with.

    python make.py files [--out DIR]          writes config.json, model.safetensors and tokens.u16
    python make.py train [--steps 300]        trains on the CPU in f32 and writes curve.csv
    python make.py compare LEAN.json KEEP.json   runs of two plans beside curve.csv: ebbtide.csv,
                                              curve.svg and how far they are apart

Weights and the order of the data come from formulas, given in README.md beside this file, so that
they can be made anywhere, bit for bit.
"""

import argparse
import csv
import hashlib
import json
import math
import pathlib
import statistics
import time

import numpy as np
import safetensors.numpy

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
TEXT = ROOT / "tests/data/text/devils-dictionary.txt"
SEQUENCE, BATCH, STEPS, WARM_UP = 256, 4, 300, 20
PEAK_RATE = 1e-3
WEIGHT_SEED, ORDER_SEED = 1, 2
# Uniform in ±BOUND has a standard deviation of 0.02.
BOUND = np.float32(0.034641016)


def splitmix64(seed: int, counters: np.ndarray) -> np.ndarray:
    """Output number `counter` (from 0) of the generator SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its HF name."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    found = {
        "model.embed_tokens.weight": (v, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (v, d),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (d,),
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "post_attention_layernorm": (d,),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }.items():
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found


def weights(config: dict) -> dict[str, np.ndarray]:
    """Initial weights: norms are 1, every element of a matrix is drawn by its number."""
    made, first = {}, 0
    for name, shape in sorted(shapes(config).items()):
        if len(shape) == 1:
            made[name] = np.ones(shape, np.float32)
            continue
        count = math.prod(shape)
        bits = splitmix64(WEIGHT_SEED, np.arange(first, first + count)) >> np.uint64(40)
        signed = (bits.astype(np.int64) - 2**23).astype(np.float32) * np.float32(2.0**-23)
        made[name] = (signed * BOUND).reshape(shape)
        first += count
    return made


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Sequences to train on, in order, and those held out: [sequences, SEQUENCE] of u16 each."""
    text = np.frombuffer(TEXT.read_bytes(), np.uint8)
    alphabet, ids = np.unique(text, return_inverse=True)
    assert len(alphabet) == json.loads((HERE / "config.json").read_text())["vocab_size"]
    count = len(ids) // SEQUENCE
    sequences = ids[: count * SEQUENCE].astype("<u2").reshape(count, SEQUENCE)
    order = np.argsort(splitmix64(ORDER_SEED, np.arange(count)), kind="stable")
    return sequences[order[: STEPS * BATCH]], sequences[order[STEPS * BATCH :]]


def learning_rate(step: int) -> float:
    """Of a step counted from 0: linear warm-up, then a half cosine to 0."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def write_files(out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((HERE / "config.json").read_text())
    made = weights(config)
    (out / "config.json").write_text((HERE / "config.json").read_text())
    safetensors.numpy.save_file(made, out / "model.safetensors", metadata={"format": "pt"})
    ordered, held_out = tokens()
    ordered.tofile(out / "tokens.u16")
    digest = hashlib.sha256(b"".join(made[name].tobytes() for name in sorted(made))).hexdigest()
    print(f"parameters {sum(w.size for w in made.values())}")
    print(f"sha256 of all elements in order {digest}")
    print(f"lm_head.weight[0][:3] {made['lm_head.weight'][0][:3].tolist()}")
    last = made["model.layers.5.self_attn.v_proj.weight"]
    print(f"model.layers.5.self_attn.v_proj.weight[63][125:] {last[63][125:].tolist()}")
    print(f"sequences {len(ordered)}, held out {len(held_out)}")
    digest = hashlib.sha256((out / "tokens.u16").read_bytes()).hexdigest()
    print(f"sha256 of tokens.u16 {digest}")
    print(f"first tokens {ordered[0][:12].tolist()}")


def train_once(steps: int, exact: bool) -> tuple[list[float], list[float], float, float]:
    """Losses, seconds of each step, held-out loss before and after; `exact`: in f64, which shows
    how far f32 drifts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    config = LlamaConfig.from_json_file(HERE / "config.json")
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    made = weights(json.loads((HERE / "config.json").read_text()))
    model.load_state_dict({name: torch.from_numpy(w) for name, w in made.items()}, strict=True)
    if exact:
        # HF casts norms, softmax, RoPE and logits to f32; these casts then go to f64.
        torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
        model.to(torch.float64)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    ordered, held_out = (torch.from_numpy(t.astype(np.int64)) for t in tokens())

    @torch.no_grad()
    def held_out_loss() -> float:
        batches = held_out.split(15)
        each = [model(input_ids=b, labels=b).loss.item() * len(b) for b in batches]
        return sum(each) / len(held_out)

    before = held_out_loss()
    losses, seconds = [], []
    for step in range(steps):
        started = time.perf_counter()
        batch = ordered[step * BATCH : (step + 1) * BATCH]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return losses, seconds, before, held_out_loss()


def train(steps: int) -> None:
    import torch
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, one thread")
    losses, seconds, before, after = train_once(steps, exact=False)
    truth, _, _, after_truth = train_once(steps, exact=True)
    with open(HERE / "curve.csv", "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["step", "learning_rate", "loss", "loss_f64"])
        for step, (loss, other) in enumerate(zip(losses, truth)):
            rows.writerow([step, repr(learning_rate(step)), repr(loss), repr(other)])
    apart = [abs(a - b) / b for a, b in zip(losses, truth)]
    last = statistics.mean(losses[-20:])
    print(f"loss {losses[0]:.6f} at step 0, mean of the last 20 {last:.4f}")
    print(f"held out {before:.6f} before, {after:.6f} after, {after_truth:.6f} after in f64")
    for end in (1, 10, 50, 100, 200, 300):
        if end <= steps:
            worst = max(apart[:end])
            print(f"f32 to f64, largest relative difference in {end} steps: {worst:.1e}")
    print(f"seconds per step: median {statistics.median(seconds):.4f}, least {min(seconds):.4f}")


def largest(apart: list[float]) -> str:
    ends = [end for end in (1, 10, 50, 100, 200, 300) if end <= len(apart)]
    return ", ".join(f"{max(apart[:end]):.1e} in {end}" for end in ends)


def compare(lean: pathlib.Path, keep: pathlib.Path) -> None:
    with open(HERE / "curve.csv") as file:
        rows = list(csv.DictReader(file))
    reference, truth = ([float(row[name]) for row in rows] for name in ("loss", "loss_f64"))
    runs = {path: json.loads(path.read_text())["losses"] for path in (lean, keep)}
    with open(HERE / "ebbtide.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "loss_lean", "loss_keep"])
        table.writerows((step, *map(repr, both)) for step, both in enumerate(zip(*runs.values())))
    apart = lambda a, b: [abs(x - y) / y for x, y in zip(a, b)]
    for path, losses in runs.items():
        print(f"{path.name} to PyTorch's f32: {largest(apart(losses, reference))}")
        print(f"{path.name} to PyTorch's f64: {largest(apart(losses, truth))}")
    print(f"{lean.name} to {keep.name}: {largest(apart(runs[lean], runs[keep]))}")
    plot(reference, truth, runs[lean])


def plot(reference: list[float], truth: list[float], losses: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "char-level"
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 2), layout="constrained"
    )
    top.plot(reference, label="PyTorch", linewidth=2.5, color="#b0b0b0")
    label = "ebbtide, CPU device, 12 MiB"
    top.plot(losses, label=label, linewidth=0.9, color="#1f4e9c")
    top.set_ylabel("loss, nats per character")
    top.legend()
    for name, a, b, color in (
        ("ebbtide to PyTorch", losses, reference, "#1f4e9c"),
        ("PyTorch's f32 to its f64", reference, truth, "#b0b0b0"),
    ):
        apart = [abs(x - y) / y for x, y in zip(a, b)]
        bottom.semilogy(apart, label=name, color=color, linewidth=0.9)
    bottom.set_ylabel("relative difference")
    bottom.set_xlabel("step")
    bottom.legend()
    figure.savefig(HERE / "curve.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    files = commands.add_parser("files")
    files.add_argument("--out", type=pathlib.Path, default=ROOT / "target/char-level")
    training = commands.add_parser("train")
    training.add_argument("--steps", type=int, default=STEPS)
    comparing = commands.add_parser("compare")
    comparing.add_argument("lean", type=pathlib.Path)
    comparing.add_argument("keep", type=pathlib.Path)
    asked = parser.parse_args()
    if asked.command == "files":
        write_files(asked.out)
    elif asked.command == "train":
        train(asked.steps)
    else:
        compare(asked.lean, asked.keep)


if __name__ == "__main__":
    main()
