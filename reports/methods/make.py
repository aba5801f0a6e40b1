"""Trains the model of reports/char-level with every method, and draws the losses.

    python make.py run EBBTIDE       runs.csv: every method, rate and seed, 300 steps each
    python make.py draw              table.md and curves.svg of runs.csv

EBBTIDE is the program, built in release. Nothing but Python is needed.
"""

import array
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE.parent.parent / "tests/data/text/devils-dictionary.txt"
MODEL = HERE.parent / "char-level"
SEQ, BATCH, STEPS, SEEDS = 256, 4, 300, [0, 1, 2]
LAST = 20  # the loss of a run is the mean of its last steps
MASK = (1 << 64) - 1

LOW = ["--rank", "32", "--refresh", "50"]

# The method, flags of plan and run beside it, the type, and the rates that are tried with the first
# seed.
METHODS = {
    "adamw": ("adamw", [], [], "f32", [3e-4, 1e-3, 3e-3, 1e-2]),
    "adamw-bf16-sr": ("adamw-bf16-sr", [], [], "bf16", [1e-3, 3e-3, 1e-2]),
    "adamw8bit": ("adamw8bit", [], [], "f32", [3e-4, 1e-3, 3e-3, 1e-2]),
    "sgd": ("sgd", [], [], "f32", [0.01, 0.03, 0.1, 0.3, 1.0]),
    "lomo": ("lomo", [], [], "f32", [0.01, 0.03, 0.1, 0.3, 1.0]),
    "adalomo": ("adalomo", [], [], "f32", [0.01, 0.03, 0.1, 0.3]),
    "galore": ("galore", LOW, [], "f32", [3e-3, 1e-2, 3e-2, 0.1]),
    "fira": ("fira", LOW, [], "f32", [1e-3, 3e-3, 1e-2, 3e-2]),
    "apollo": ("apollo", LOW, [], "f32", [1e-3, 3e-3, 1e-2, 3e-2]),
    "apollo-mini": ("apollo-mini", ["--refresh", "50"], [], "f32", [1e-3, 3e-3, 1e-2]),
    "flora": ("flora", LOW, [], "f32", [0.01, 0.03, 0.1]),
    "compact": (
        "compact", ["--rank", "1/4", "--refresh", "50"], [], "f32", [3e-3, 1e-2, 3e-2, 0.1]
    ),
}

# Why the order is what it is: the same again but for one thing, with the first seed.
CONTROLS = {
    "adamw, second moment 0.95": ("adamw", [], ["--betas", "0.9,0.95"], "f32", [1e-3, 3e-3, 1e-2]),
    "adamw, clipped at 1": ("adamw", ["--clip"], ["--clip", "1"], "f32", [1e-3, 3e-3, 1e-2]),
    "galore, scale 1": ("galore", LOW + ["--scale", "1"], [], "f32", [1e-3, 3e-3, 1e-2]),
    "compact, scale 1": (
        "compact", ["--rank", "1/4", "--refresh", "50", "--scale", "1"], [], "f32",
        [1e-3, 3e-3, 1e-2],
    ),
}
RUNS = METHODS | CONTROLS


def splitmix64(seed: int, counter: int) -> int:
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def write_tokens(path: pathlib.Path) -> None:
    """Characters as in reports/char-level, its sequences in its order."""
    text = TEXT.read_bytes()
    number = {byte: place for place, byte in enumerate(sorted(set(text)))}
    order = sorted(range(len(text) // SEQ), key=lambda k: splitmix64(2, k))[:1200]
    ids = array.array("H")
    for k in order:
        ids.extend(number[byte] for byte in text[k * SEQ : (k + 1) * SEQ])
    if sys.byteorder == "big":
        ids.byteswap()
    path.write_bytes(ids.tobytes())


def train(program: str, place: pathlib.Path, name: str, rate: float, seed: int) -> dict:
    method, plan_flags, run_flags, dtype, _ = RUNS[name]
    schedule = place / f"{list(RUNS).index(name)}.json"
    if not schedule.exists():
        subprocess.run(
            [program, "plan", "--model", str(MODEL), "--profile", "unit", "--seq", str(SEQ)]
            + ["--batch", str(BATCH), "--dtype", dtype, "--strategy", "keep", "--method", method]
            + plan_flags + ["-o", str(schedule)],
            check=True, stdout=subprocess.DEVNULL,
        )
    run = subprocess.run(
        [program, "run", str(schedule), "--tokens", str(place / "tokens.u16"), "--json"]
        + ["--steps", str(STEPS), "--seed", str(seed), "--lr", str(rate), "--schedule", "cosine"]
        + ["--warmup", "20", "--warmup-above-zero"] + run_flags,
        capture_output=True, text=True,
    )
    if run.returncode == 2 and "the loss of step" in run.stderr:  # it diverged
        return {
            "method": name, "rate": rate, "seed": seed, "states_bytes": 0, "planned_bytes": 0,
            "measured_bytes": 0, "losses": "nan",
        }
    run.check_returncode()
    found = json.loads(run.stdout)
    states = json.loads(schedule.read_text())
    kept = sum(
        b["bytes"] for b in states["buffers"] if b["category"] == "optimizer_states"
    )
    return {
        "method": name, "rate": rate, "seed": seed, "states_bytes": kept,
        "planned_bytes": found["predicted"]["arena_bytes"],
        "measured_bytes": found["measured"]["arena_bytes"],
        "losses": " ".join(f"{loss:.5f}" for loss in found["losses"]),
    }


def last(row: dict) -> float:
    return statistics.mean(float(x) for x in row["losses"].split()[-LAST:])


def run(program: str, methods: list[str]) -> None:
    out = HERE / "runs.csv"
    rows = list(csv.DictReader(out.open())) if out.exists() else []
    done = {(r["method"], float(r["rate"]), int(r["seed"])) for r in rows}
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        write_tokens(place / "tokens.u16")

        def add(method: str, rate: float, seed: int) -> None:
            if (method, rate, seed) not in done:
                row = train(program, place, method, rate, seed)
                rows.append(row)
                print(method, rate, seed, f"{last(row):.4f}", flush=True)
                with out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)

        for method in methods:
            for rate in RUNS[method][4]:
                add(method, rate, SEEDS[0])
            for seed in SEEDS[1:] if method in METHODS else []:
                add(method, best(rows, method), seed)


def best(rows: list[dict], method: str) -> float:
    tried = [r for r in rows if r["method"] == method and int(r["seed"]) == SEEDS[0]]
    return float(min(tried, key=lambda r: (last(r) != last(r), last(r)))["rate"])


def chosen(rows: list[dict], method: str) -> list[dict]:
    rate = best(rows, method)
    return [r for r in rows if r["method"] == method and float(r["rate"]) == rate]


def draw() -> None:
    rows = list(csv.DictReader((HERE / "runs.csv").open()))
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [
        "| method | type | rate | loss of the last 20 steps | spread of 3 seeds | states | "
        "arena planned = measured |",
        "|---|---|---|---|---|---|---|",
    ]
    curves = {}
    for method in sorted(methods, key=lambda m: statistics.mean(map(last, chosen(rows, m)))):
        of = chosen(rows, method)
        losses = [last(r) for r in of]
        assert all(r["planned_bytes"] == r["measured_bytes"] for r in of), method
        lines.append(
            f"| {method} | {METHODS[method][3]} | {best(rows, method):g} | "
            f"{statistics.mean(losses):.4f} | {min(losses):.4f} to {max(losses):.4f} | "
            f"{int(of[0]['states_bytes']):,} | {int(of[0]['planned_bytes']):,} |"
        )
        each = [[float(x) for x in r["losses"].split()] for r in of]
        curves[method] = [statistics.mean(step) for step in zip(*each)]
    lines += ["", "| with one thing changed |" + " rate: loss |" * 3, "|---|---|---|---|"]
    for name in CONTROLS:
        of = [r for r in rows if r["method"] == name]
        lines.append(f"| {name} | " + " | ".join(f"{float(r['rate']):g}: {last(r):.4f}" for r in of) + " |")
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    (HERE / "curves.svg").write_text(figure(curves))


def figure(curves: dict[str, list[float]]) -> str:
    """Running means over ten steps, on a linear scale."""
    width, height, left, top = 760, 420, 50, 20
    colours = ["#000", "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b",
               "#e377c2", "#7f7f7f", "#17becf", "#bcbd22", "#2f4f4f"]
    low, high = 2.0, 4.5
    x = lambda step: left + (width - 190) * step / STEPS
    y = lambda loss: top + (height - 60) * (high - loss) / (high - low)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for tick in [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]:
        parts.append(f'<path d="M{left} {y(tick):.1f}H{x(STEPS):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 28}" y="{y(tick) + 4:.1f}">{tick}</text>')
    for tick in range(0, STEPS + 1, 50):
        parts.append(f'<text x="{x(tick) - 8:.1f}" y="{height - 22}">{tick}</text>')
    parts.append(f'<text x="{x(STEPS / 2) - 20:.1f}" y="{height - 4}">step</text>')
    for nth, (method, losses) in enumerate(curves.items()):
        means = [statistics.mean(losses[max(0, s - 9) : s + 1]) for s in range(len(losses))]
        points = " ".join(f"{x(s):.1f},{y(min(m, high)):.1f}" for s, m in enumerate(means))
        colour = colours[nth % len(colours)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        at = top + 20 + 18 * nth
        parts.append(f'<path d="M{width - 130} {at - 4}h18" stroke="{colour}"/>')
        parts.append(f'<text x="{width - 106}" y="{at}">{method}</text>')
    return "\n".join(parts + ["</svg>"]) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"] and len(sys.argv) >= 3:
        run(sys.argv[2], sys.argv[3:] or list(RUNS))
    elif sys.argv[1:] == ["draw"]:
        draw()
    else:
        sys.exit(__doc__)
