#!/usr/bin/env python3
"""Turns samples that a PyTorch script printed (JSON lines) into a hardware profile.

    python3 convert_pytorch_samples.py source/h100-sxm5-80gb.jsonl > h100-sxm5-80gb.json

Reads one row of kind `k` per line. Rates are GB/s = 1e9 bytes/s and TFLOP/s = 1e12 FLOP/s; what
the rows do not hold is a constant below, and the `source` of its section says so.
"""

import json
import sys

NAME = "h100-sxm5-80gb"
GIB = 1 << 30
OVERHEAD_BYTES = 640 << 20
HOST_MEMORY_BYTES = 125 * GIB
ADAM_BYTES_PER_PARAM = 28
LAUNCH_NS = 2000
HEADS, HEAD_DIM = 32, 128
PEAK_FLOPS_PER_S = {"f32": 66_900_000_000_000, "bf16": 989_400_000_000_000,
                    "fp8": 1_978_900_000_000_000}

DEVICE_SOURCE = (
    "measured: memory, usable memory (free in a process that has its context) and device copy "
    "2818.5 GB/s, taken as bytes read plus written, since twice that would exceed the 3350 GB/s of "
    "HBM3; datasheet: dense peaks; assumed: 640 MiB overhead for the workspaces and kernels that "
    "libraries load later, on the safe side")
HOST_SOURCE = (
    "measured: cores, pinning of 4 GiB, fused AdamW on 16 threads, tensor copy 76.0 GB/s, taken "
    "as bytes copied (traffic is twice that), since AdamW alone moves 102 GB/s; stated: memory "
    "125 GiB; counted: AdamW reads 16 and writes 12 bytes per parameter")
LINKS_SOURCE = "measured: pinned copies by size, each direction alone, and both at once"
SLOWDOWN_SOURCE = (
    "measured: one GEMM beside each kind of copy, one elementwise kernel beside copies; assumed: "
    "the elementwise slowdown holds beside either direction and beside both")
LAUNCH_SOURCE = "assumed: gap between queued kernels of a few microseconds at most"
GEMM_SOURCE = "measured: bf16 linear layers (m tokens, k to n features), rates as times"
ATTENTION_SOURCE = (
    "measured: cuDNN fused causal attention, bf16, 32 heads of 128, 32 or 8 key/value heads; "
    "workspace by formula: 4 bytes of dQ accumulator per query element and 4 per row, with fewer "
    "key/value heads also dK and dV for every head")
ELEMENTWISE_SOURCE = "assumed: fused kernels reach the bandwidth of the measured device copy"
OPTIMIZER_SOURCE = "measured: fused AdamW on f32 states (28 bytes per parameter, 2.44 TB/s)"


def transfer_ns(size, gigabytes_per_s):
    return round(size / gigabytes_per_s)


def gemm_samples(rows):
    names = {"fwd": "forward", "dgrad": "dgrad", "wgrad": "wgrad"}
    for row in rows:
        m, k, n = row["m"], row["kk"], row["n"]
        for key, direction in names.items():
            ns = round(2 * m * k * n / (row[key] * 1e3))
            yield {"m": m, "k": k, "n": n, "direction": direction, "ns": ns}


def attention_samples(rows):
    for row in rows:
        if row["be"] != "CUDNN_ATTENTION":
            continue
        for key, direction in {"tf": "forward", "tb": "backward"}.items():
            yield {"tokens": row["S"], "heads": HEADS, "kv_heads": row["hkv"],
                   "head_dim": HEAD_DIM, "direction": direction, "ns": round(row[key] * 1e9)}


def slower_ppm(seconds, alone):
    return round((seconds / alone - 1) * 1e6)


def profile(rows):
    def every(kind):
        return [row for row in rows if row["k"] == kind]

    def only(kind):
        (row,) = every(kind)
        return row

    def copies(direction):
        return {"samples": [{"bytes": row["bytes"], "ns": transfer_ns(row["bytes"], row[direction])}
                            for row in every("copy")]}

    device = only("dev")
    both = round(only("copy_bidir")["each_GBs"] * 1e9)
    gemm = {row["copy"]: row["s"] for row in every("gemm_under_copy")}
    kernel = {row["copy"]: row["s"] for row in every("elementwise_under_copy")}
    kernel_ppm = slower_ppm(kernel[1], kernel[0])
    return {
        "schema": "ebbtide/profile/1",
        "name": NAME,
        "default_dtype": "bf16",
        "device": {
            "source": DEVICE_SOURCE,
            "name": device["name"],
            "memory_bytes": device["mem"],
            "usable_bytes": device["free"],
            "overhead_bytes": OVERHEAD_BYTES,
            "peak_flops_per_s": PEAK_FLOPS_PER_S,
            "memory_bytes_per_s": round(only("d2d")["GBs"] * 1e9),
        },
        "host": {
            "source": HOST_SOURCE,
            "memory_bytes": HOST_MEMORY_BYTES,
            "cores": device["cpus"],
            "memory_bytes_per_s": round(2 * only("host_copy")["GBs"] * 1e9),
            "pin_bytes_per_s": round(4 * GIB / only("pin4GiB")["s"]),
            "adam_params_per_s": round(only("cpu_adamw_fused")["params_per_s"]),
            "adam_bytes_per_param": ADAM_BYTES_PER_PARAM,
        },
        "links": {
            "source": LINKS_SOURCE,
            "d2h": copies("d2h"),
            "h2d": copies("h2d"),
            "both": {"h2d_bytes_per_s": both, "d2h_bytes_per_s": both},
        },
        "slowdown": {
            "source": SLOWDOWN_SOURCE,
            "matmul": {f"{copy}_ppm": slower_ppm(gemm[copy], gemm["none"])
                       for copy in ("d2h", "h2d", "both")},
            "elementwise": {f"{copy}_ppm": kernel_ppm for copy in ("d2h", "h2d", "both")},
        },
        "operators": {
            "launch": {"source": LAUNCH_SOURCE, "ns": LAUNCH_NS},
            "gemm": {"source": GEMM_SOURCE, "samples": list(gemm_samples(every("gemm")))},
            "attention": {"source": ATTENTION_SOURCE, "workspace": "cudnn",
                          "samples": list(attention_samples(every("attn")))},
            "elementwise": {"source": ELEMENTWISE_SOURCE},
            "optimizer": {"source": OPTIMIZER_SOURCE,
                          "adam_params_per_s": round(only("gpu_adamw_fused")["params_per_s"])},
        },
    }


def text(value, indent=""):
    """JSON with one line for every object that holds no other."""
    deeper = indent + "  "
    if isinstance(value, list):
        lines = ",\n".join(deeper + text(item, deeper) for item in value)
        return f"[\n{lines}\n{indent}]"
    if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
        lines = ",\n".join(f"{deeper}{json.dumps(key)}: {text(item, deeper)}"
                           for key, item in value.items())
        return f"{{\n{lines}\n{indent}}}"
    return json.dumps(value)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as samples:
        print(text(profile([json.loads(line) for line in samples])))
