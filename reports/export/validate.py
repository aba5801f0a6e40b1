"""What the packages themselves say of the settings that `ebbtide export` prints.

    python3 -m venv venv && venv/bin/pip install trl deepspeed jax pyyaml torchtitan tyro spmd_types
    venv/bin/pip install --no-deps megatron-core axolotl
    venv/bin/python reports/export/validate.py target/release/ebbtide > reports/export/validated.txt

Plans seven cases, exports each to every system, and gives the settings to the real classes. Ends
with exit code 1 if any of them refuses its settings.
"""

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
EBBTIDE = sys.argv[1] if len(sys.argv) > 1 else "target/release/ebbtide"
CASES = [
    "--model llama-3.1-8b --profile h100-sxm5-80gb --seq 128k --host-memory 200GiB",
    "--model llama-3.1-8b --profile h100-sxm5-80gb --seq 128k",
    "--model llama-3.1-8b --profile h100-sxm5-80gb --seq 64k --method lomo",
    "--model llama-3.2-1b --profile h100-sxm5-80gb --seq 8k",
    "--model llama-2-7b --profile h100-sxm5-80gb --seq 32k --method sgd",
    "--model llama-2-7b --profile rtx-4090-24gb --seq 16k --method lomo",
    "--model llama-2-7b --profile rtx-4090-24gb --seq 40k --method lomo",
]


def flags(text):
    return shlex.split(text.replace("\\\n", " "))


def trl(text):
    from transformers import HfArgumentParser
    from trl import SFTConfig

    arguments = flags(text)
    if "--deepspeed" in arguments:
        # HF reads the file at once; it is checked as DeepSpeed's own.
        at = arguments.index("--deepspeed")
        del arguments[at : at + 2]
    arguments += ["--output_dir", "out", "--use_cpu", "true", "--bf16", "false"]
    # The fused optimizer and bf16 are refused where there is no GPU; the names are checked below.
    (config,) = HfArgumentParser(SFTConfig).parse_args_into_dataclasses(arguments)
    return f"SFTConfig: max_length {config.max_length}, optim {config.optim}, checkpointing " \
           f"{config.gradient_checkpointing} {config.gradient_checkpointing_kwargs}, offloading " \
           f"{config.activation_offloading}"


def axolotl(text):
    import yaml
    from axolotl.utils.schemas.config import AxolotlInputConfig

    settings = yaml.safe_load(text)
    unknown = set(settings) - set(AxolotlInputConfig.model_fields)
    assert not unknown, f"no such keys: {unknown}"
    # What a user's file has besides: the model and the data.
    rest = {"base_model": "some/model", "datasets": [{"path": "some/data", "type": "completion"}]}
    config = AxolotlInputConfig(**settings, **rest, learning_rate=1e-5)
    return f"AxolotlInputConfig: sequence_len {config.sequence_len}, optimizer " \
           f"{getattr(config.optimizer, 'value', config.optimizer)}, checkpointing " \
           f"{config.gradient_checkpointing} {config.gradient_checkpointing_kwargs}"


def deepspeed(text):
    from deepspeed.runtime.activation_checkpointing.config import (
        DeepSpeedActivationCheckpointingConfig,
    )
    from deepspeed.runtime.zero.config import get_zero_config

    config = json.loads(text)
    zero = get_zero_config(config)
    activations = DeepSpeedActivationCheckpointingConfig(config)
    # A name in one version, an enum in another.
    device = zero.offload_optimizer.device if zero.offload_optimizer else "device"
    where = getattr(device, "value", device)
    return f"zero stage {int(zero.stage)}, optimizer on {where}, cpu_checkpointing " \
           f"{activations.cpu_checkpointing}"


def megatron(text):
    from megatron.core.transformer.transformer_config import TransformerConfig

    known = {name: None for name in TransformerConfig.__dataclass_fields__}
    fields, name = {}, None
    for word in flags(text):
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            fields[name] = []
        else:
            fields[name].append(word)
    layer = {k: v for k, v in fields.items() if k in known}
    layer = {
        k: (True if not v else int(v[0]) if k == "recompute_num_layers" else
            v if k.endswith("modules") else v[0])
        for k, v in layer.items()
    }
    TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, **layer)
    rest = sorted(set(fields) - set(layer))
    return f"TransformerConfig takes {sorted(layer)}; not its fields: {rest}"


def torchtitan(text):
    scope = {}
    exec(text, scope)
    training, chosen = scope["training"], scope["activation_checkpoint"]
    return f"TrainingConfig: seq_len {training.seq_len}, offload {training.enable_cpu_offload}; " \
           f"{type(chosen).__qualname__}"


def jax(text):
    import jax.numpy as jnp
    from jax import checkpoint, value_and_grad
    from jax.ad_checkpoint import checkpoint_name

    scope = {}
    exec(text, scope)
    names = ["n1", "qkv", "o", "x2", "n2", "gate_up", "h"]

    def block(x):
        for name in names:
            x = checkpoint_name(jnp.sin(x), name)
        return x.sum()

    x = jnp.arange(8.0)
    loss, gradient = value_and_grad(checkpoint(block, policy=scope["policy"]))(x)
    plain, expected = value_and_grad(block)(x)
    assert bool((gradient == expected).all()) and bool(loss == plain)
    return "checkpointed block: loss and gradient as without a policy"


def main():
    refused = 0
    packages = ["trl", "transformers", "axolotl", "deepspeed", "megatron-core", "torchtitan", "jax"]
    for package in packages:
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "not installed")
    for case in CASES:
        print(f"\nebbtide plan {case}")
        with tempfile.TemporaryDirectory() as directory:
            schedule = os.path.join(directory, "schedule.json")
            plan = [EBBTIDE, "plan", *case.split(), "--json", "-o", schedule]
            subprocess.run(plan, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for system in [trl, axolotl, deepspeed, megatron, torchtitan, jax]:
                name = system.__name__
                export = [EBBTIDE, "export", schedule, "--to", name]
                done = subprocess.run(export, capture_output=True, text=True)
                if done.returncode == 3:
                    print(f"  {name}: {done.stderr.splitlines()[0]}", flush=True)
                    continue
                words = done.stderr.splitlines()[0] if done.stderr else ""
                try:
                    print(f"  {name}: taken. {system(done.stdout)}\n    {words}")
                except Exception as error:
                    refused += 1
                    print(f"  {name}: REFUSED. {type(error).__name__}: {error}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
