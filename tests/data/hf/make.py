"""Tiny random HF models and what transformers and PyTorch make of them.

    python make.py [NAME ...]        writes NAME/{config.json,*.safetensors,tokens.json,expected.json}

Models are built from a config, every weight is drawn anew (norms, biases and all, so that nothing
hides behind a 0 or a 1), and two optimizer steps are run on the CPU with eager attention in f32.
README.md beside this file says what each file holds and how far its numbers can be trusted.
"""

import argparse
import contextlib
import json
import math
import pathlib

import safetensors.torch
import torch
import transformers
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
SEQUENCE, BATCH, STEPS = 48, 2, 2
ENTRIES = 6
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
SGD = {"lr": 0.1, "weight_decay": 0.01}
CLIP = 0.1
IGNORED = -100

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Wavelengths 6.3, 20, 63 and 199 against 8 and 32: one kept, one in the ramp, two divided.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Made for 32 positions, stretched to 128: the ramp runs from pair 0 to pair 3 of 8.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 32,
}
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MODELS = {
    # Grouped queries, llama3 RoPE, sizes that no tile divides, not tied.
    "llama": (
        transformers.LlamaConfig,
        dict(
            vocab_size=101,
            hidden_size=48,
            intermediate_size=88,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            rope_parameters=LLAMA3,
            tie_word_embeddings=False,
        ),
    ),
    # Biases of attention, its output and the gated MLP, YaRN, as many key as query heads.
    "llama_yarn": (
        transformers.LlamaConfig,
        dict(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rope_parameters=YARN,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        ),
    ),
    # QKV bias; a full layer before two with a window; weights stored in bf16.
    "qwen2": (
        transformers.Qwen2Config,
        dict(
            vocab_size=112,
            hidden_size=32,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=1,
            rms_norm_eps=1e-3,
            rope_parameters=ROPE | {"rope_theta": 1000000.0},
            tie_word_embeddings=False,
        ),
    ),
    # A window of 17 tokens in a sequence of 48; several files and an index.
    "mistral": (
        transformers.MistralConfig,
        dict(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=64,
            sliding_window=17,
            rope_parameters=ROPE,
            tie_word_embeddings=False,
        ),
    ),
    # Norms of q and k, heads wider than the hidden size together, linear RoPE scaling, tied.
    "qwen3": (
        transformers.Qwen3Config,
        dict(
            vocab_size=127,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "linear", "rope_theta": 1000000.0, "factor": 2.0},
            tie_word_embeddings=True,
        ),
    ),
    # `1 + w` norms, scaled embedding, GeGLU, one key and value head, tied.
    "gemma": (
        transformers.GemmaConfig,
        dict(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=12,
            max_position_embeddings=64,
            rope_parameters=ROPE,
            tie_word_embeddings=True,
        ),
    ),
    # LayerNorm, plain MLP, learned positions, biases everywhere, transposed matrices, tied.
    "gpt2": (
        transformers.GPT2Config,
        dict(
            vocab_size=99,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=56,
            layer_norm_epsilon=1e-3,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=True,
        ),
    ),
}
# What enters the non-linearity is wide enough to tell one GELU from the other.
WIDE = ("gate_proj.weight", "c_fc.weight")
STORED_IN_BF16 = {"qwen2"}
SHARDED = {"mistral": "50KB"}


def build(name: str) -> torch.nn.Module:
    """The model with its weights as they are stored, computing in f32."""
    kind, sizes = MODELS[name]
    config = kind(**sizes, **NO_SPECIAL_TOKENS, use_cache=False)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1000 + list(MODELS).index(name))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if key.endswith("bias"):
                draw *= 0.1
            elif weight.dim() == 1:
                draw = 0.2 * draw + (0.0 if name == "gemma" else 1.0)
            elif "embed" in key or "wte" in key or "wpe" in key or "lm_head" in key:
                draw *= 0.2
            else:
                draw *= weight.shape[1] ** -0.5
            if key.endswith(WIDE):
                draw *= 3
            weight.copy_(draw.bfloat16() if name in STORED_IN_BF16 else draw)
    return model.train()


def save(name: str, model: torch.nn.Module, directory: pathlib.Path) -> None:
    """Writes config.json and the weights through `save_pretrained`."""
    for old in directory.glob("*.safetensors*"):
        old.unlink()
    stored = model.to(torch.bfloat16) if name in STORED_IN_BF16 else model
    stored.save_pretrained(directory, max_shard_size=SHARDED.get(name, "5GB"))
    (directory / "generation_config.json").unlink(missing_ok=True)
    for file in directory.glob("*.safetensors"):
        file.chmod(0o644)


def load(directory: pathlib.Path, dtype: torch.dtype) -> torch.nn.Module:
    """The stored model, to compute in `dtype`, without dropout (there is none to leave out)."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    )
    return model.train()


@contextlib.contextmanager
def computing_in(dtype: torch.dtype):
    """HF casts norms, softmax, RoPE and logits to f32; in f64 these casts go to f64."""
    f32, to_f32 = torch.float32, torch.Tensor.float
    if dtype == torch.float64:
        torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = f32, to_f32


def forward(model, tokens, labels=None):
    with computing_in(model.dtype):
        return model(input_ids=tokens, labels=tokens if labels is None else labels)


def gradients(model, tokens, labels=None):
    """Loss, logits and the gradient of every parameter, a tied one once."""
    model.zero_grad()
    output = forward(model, tokens, labels)
    output.loss.backward()
    found = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()
    return output.loss.item(), output.logits.detach(), found


def total_norm(found) -> float:
    return math.sqrt(sum(g.double().pow(2).sum().item() for g in found.values()))


def optimize(model, tokens, method: str, clip: float | None):
    """Two optimizer steps: losses before each and after the last, norms, final weights."""
    weights = list(model.parameters())
    if method == "adamw":
        optimizer = torch.optim.AdamW(weights, **ADAMW, foreach=False)
    else:
        optimizer = torch.optim.SGD(weights, **SGD, foreach=False)
    losses, norms = [], []
    for batch in tokens:
        optimizer.zero_grad()
        loss = forward(model, batch).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(total_norm({k: w.grad for k, w in model.named_parameters()}))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, clip, foreach=False)
        optimizer.step()
    losses.append(forward(model, tokens[-1]).loss.item())
    final = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    return losses, norms, final


def undetermined(name: str, key: str) -> tuple[int, int] | None:
    """Elements [start, end) whose gradient is 0 in exact arithmetic: what is left is rounding,
    which Adam turns into steps of full length. Without RoPE a bias of k adds the same to every
    score of a query, and softmax does not see it."""
    hidden = MODELS[name][1].get("n_embd")
    return (hidden, 2 * hidden) if key.endswith("c_attn.bias") else None


def summary(name: str, key: str, tensor: torch.Tensor, exact: torch.Tensor | None = None):
    """Sum, norm and entries of a tensor in f64. Entries are spread by the golden ratio; where an
    f64 run is given, those on which f32 itself is not good to 1e-5 are passed over."""
    flat = tensor.double().flatten()
    trusted = torch.ones_like(flat, dtype=torch.bool)
    out = undetermined(name, key)
    if out:
        trusted[out[0] : out[1]] = False
    kept = flat[trusted]
    row = {"sum": kept.sum().item(), "norm": kept.norm().item()}
    good = trusted.clone()
    if exact is not None:
        off = (flat - exact.double().flatten()).abs()
        good &= off <= 1e-5 * flat.abs()
        row["f32_error"] = float(f"{off[trusted].max().item():.1e}")
    entries, k = {}, 0
    while len(entries) < min(ENTRIES, int(good.sum())) and k < 20 * ENTRIES:
        k += 1
        index = int(math.modf(k * 0.6180339887498949)[0] * flat.numel())
        if good[index]:
            entries[index] = flat[index].item()
    row["entries"] = [[index, entries[index]] for index in sorted(entries)]
    if out:
        row["left_out"] = list(out)
    return row


def gradient_section(name, loss, found, exact_loss, exact):
    rows = {key: summary(name, key, g, exact[key]) for key, g in found.items()}
    return {
        "loss": loss,
        "loss_f64": exact_loss,
        "gradient_norm": total_norm(found),
        "gradients": rows,
    }


def logits_section(logits):
    flat = logits.double().flatten()
    batch, sequence, vocab = logits.shape
    entries = []
    for b, t in [(0, 0), (0, sequence - 1), (1, 1), (1, sequence // 2), (1, sequence - 1)]:
        for v in (0, vocab // 2, vocab - 1):
            entries.append([[b, t, v], logits[b, t, v].item()])
    return {
        "shape": list(logits.shape),
        "sum": flat.sum().item(),
        "sum_of_squares": flat.pow(2).sum().item(),
        "entries": entries,
    }


def optimizer_section(name, directory, tokens, method, clip=None):
    losses, norms, weights = optimize(load(directory, torch.float32), tokens, method, clip)
    exact_losses, _, exact = optimize(load(directory, torch.float64), tokens, method, clip)
    rows = {key: summary(name, key, w, exact[key]) for key, w in weights.items()}
    section = {"losses": losses, "losses_f64": exact_losses, "gradient_norms": norms}
    if clip is not None:
        section["max_norm"] = clip
    return section | {"weights": rows}


def expect(name: str, directory: pathlib.Path, tokens: torch.Tensor) -> dict:
    """Everything that expected.json holds."""
    first = tokens[0]
    single, double = (load(directory, dtype) for dtype in (torch.float32, torch.float64))
    loss, logits, found = gradients(single, first)
    exact_loss, _, exact = gradients(double, first)
    expected = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(w.numel() for w in single.parameters()),
        "logits": logits_section(logits),
        "step": gradient_section(name, loss, found, exact_loss, exact),
    }
    # Labels that are ignored: a prompt of 10 tokens in sequence 0, every fifth in sequence 1.
    labels = first.clone()
    labels[0, :10] = IGNORED
    labels[1, ::5] = IGNORED
    loss, _, found = gradients(single, first, labels)
    exact_loss, _, exact = gradients(double, first, labels)
    expected["ignored_labels"] = {"labels": labels.tolist()} | gradient_section(
        name, loss, found, exact_loss, exact
    )
    # Both batches as micro-batches of one step: the mean over all of their labels.
    loss, _, found = gradients(single, tokens.flatten(0, 1))
    exact_loss, _, exact = gradients(double, tokens.flatten(0, 1))
    expected["accumulated"] = gradient_section(name, loss, found, exact_loss, exact)
    expected["adamw"] = {"hyper": ADAMW} | optimizer_section(name, directory, tokens, "adamw")
    expected["adamw_clipped"] = {"hyper": ADAMW} | optimizer_section(
        name, directory, tokens, "adamw", CLIP
    )
    expected["sgd"] = {"hyper": SGD} | optimizer_section(name, directory, tokens, "sgd")
    return expected


def lines(value, depth: int = 0) -> str:
    """JSON with one line for each object or list that holds no object."""
    flat = json.dumps(value)
    if not isinstance(value, dict) or (depth and "{" not in flat[1:]):
        return flat
    pad = " " * (depth + 1)
    rows = [f"{pad}{json.dumps(k)}: {lines(v, depth + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"


def make(name: str) -> None:
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    model = build(name)
    save(name, model, directory)
    generator = torch.Generator().manual_seed(2000 + list(MODELS).index(name))
    vocab = model.config.vocab_size
    tokens = torch.randint(vocab, (STEPS, BATCH, SEQUENCE), generator=generator)
    (directory / "tokens.json").write_text(json.dumps({"input_ids": tokens.tolist()}) + "\n")
    expected = expect(name, directory, tokens)
    (directory / "expected.json").write_text(lines(expected) + "\n")
    files = [safetensors.torch.load_file(f) for f in sorted(directory.glob("*.safetensors"))]
    stored = sum(t.numel() for f in files for t in f.values())
    worst = max(row["f32_error"] for row in expected["adamw"]["weights"].values())
    print(
        f"{name}: {expected['parameters']} parameters, {stored} stored in {len(files)} files, "
        f"losses {expected['adamw']['losses']}, largest f32 error of a weight {worst}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or list(MODELS)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in names:
        make(name)


if __name__ == "__main__":
    main()
