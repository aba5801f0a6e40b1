"""What `check.sh` found, as tables: `python3 table.py OUT_DIR`.

Runs: the step beside the prediction, the floor and HF's step; busy streams; memory. Kernels: the
share of the device's copy bandwidth that each operator without matrix products reaches, from the
profiles. Reads only what is there.
"""

import json
import sys
from pathlib import Path

out = Path(sys.argv[1])


def read(path):
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size > 0 else None


def table(title, heads, rows):
    if not rows:
        return
    cells = [heads] + rows
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    print(f"\n{title}")
    for row in cells:
        first, *others = [cell.rjust(width) for cell, width in zip(row, widths)]
        print("  ".join([first.strip().ljust(widths[0])] + others))


def difference(measured, predicted):
    return f"{100 * (measured / predicted - 1):+.1f} %" if predicted else f"{measured / 1e6:.1f} ms"


def run_row(path):
    name = path.name.removesuffix(".run.json")
    run, hf = read(path), read(out / f"{name}.hf.json")
    predicted, measured = run["predicted"], run["measured"]
    parts = {(p["kind"], p["name"]): (p["measured_ns"], p["predicted_ns"]) for p in run["parts"]}
    streams = [parts.get(("stream", s)) for s in ("compute", "d2h", "h2d", "host")]
    step = measured["step_ns"]
    return [
        name,
        f"{step / 1e9:.3f}",
        difference(step, predicted["step_ns"]),
        f"{step / predicted['floor_ns']:.3f}",
        f"{hf['step_s'] / (step / 1e9):.3f}" if hf else "-",
        f"{100 * measured['stall_ns'] / step:.2f} %",
        *[difference(*stream) if stream else "-" for stream in streams],
        difference(measured["device_bytes"], predicted["device_bytes"]),
    ]


def kernel_rows(path):
    profile = read(path)
    copy = (profile or {}).get("device", {}).get("memory_bytes_per_s")
    kernels = (profile or {}).get("operators", {}).get("elementwise", {}).get("kernels") or []
    largest = {}
    for kernel in kernels:
        known = largest.get(kernel["operator"])
        if known is None or kernel["bytes"] > known["bytes"]:
            largest[kernel["operator"]] = kernel
    model = path.name.removesuffix(".profile.json")
    for name, kernel in sorted(largest.items()):
        rate = kernel["bytes"] / kernel["ns"] * 1e9
        share = f"{100 * rate / copy:.0f} %" if copy else "-"
        yield [f"{model} {name}", f"{kernel['bytes'] / 2**20:.0f}", f"{rate / 1e9:.0f}", share]


table(
    "Measured steps: beside the prediction, the profile's floor and HF",
    ["run", "step s", "predicted", "/ floor", "HF /", "stall"]
    + ["compute", "d2h", "h2d", "host", "device memory"],
    [run_row(path) for path in sorted(out.glob("*.run.json"))],
)
table(
    "Operators bound by memory: share of a copy's bandwidth (wanted: 85 %)",
    ["operator", "MiB", "GB/s", "of copy"],
    [row for path in sorted(out.glob("*.profile.json")) for row in kernel_rows(path)],
)
