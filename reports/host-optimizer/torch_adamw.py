"""PyTorch's fused AdamW on the CPU against a plain copy of as many bytes.

    python torch_adamw.py [--parameters 64M] [--threads 1,2]

An f32 step reads weight, gradient and both moments and writes all but the gradient: 28 bytes for
each parameter. The others read 14 and write 14 bytes for each: `copy_` and NumPy's `copyto` (memcpy,
which writes past the caches and has one thread) from one buffer to another, `mul_` in place, as the
optimizer does: memory is not read for the sake of being overwritten. A sample is five runs; those
in which other processes took more than 5 % of a core are thrown away and taken again. Median, best
and number of samples are printed. AdamW is also run on 64 tensors, to see whether their size
matters.
"""

import argparse
import os
import platform
import statistics
import time

import numpy as np
import torch

BYTES = 28
RUNS, SAMPLES, ATTEMPTS = 5, 7, 20


def busy_elsewhere() -> float:
    """Seconds that the cores have worked for anyone but this process (Linux)."""
    with open("/proc/stat") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def seconds(function) -> list[float]:
    """Time of one run, in samples during which the machine did nothing else."""
    function()
    found = []
    for _ in range(ATTEMPTS):
        begun, busy = time.perf_counter(), busy_elsewhere()
        for _ in range(RUNS):
            function()
        took, busy = time.perf_counter() - begun, busy_elsewhere() - busy
        if busy <= 0.05 * took:
            found.append(took / RUNS)
        else:
            time.sleep(1)
        if len(found) == SAMPLES:
            break
    return found


def optimizer(sizes: list[int]) -> torch.optim.AdamW:
    weights = [torch.nn.Parameter(torch.empty(size).uniform_(-1, 1)) for size in sizes]
    for weight in weights:
        weight.grad = torch.empty_like(weight).uniform_(-1e-3, 1e-3)
    return torch.optim.AdamW(
        weights, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True
    )


def report(name: str, parameters: int, found: list[float]) -> None:
    if not found:
        print(f"{name:32} the machine was never quiet", flush=True)
        return
    gigabytes = BYTES * parameters / 1e9
    median, best = statistics.median(found), min(found)
    print(
        f"{name:32} {median * 1e3:7.1f} ms {gigabytes / median:6.2f} GB/s "
        f"{parameters / median / 1e9:5.2f} G parameters/s, best {gigabytes / best:6.2f} GB/s, "
        f"{len(found)} samples",
        flush=True,
    )


def cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parameters", default="64M")
    parser.add_argument("--threads", default="1,2")
    asked = parser.parse_args()
    parameters = int(asked.parameters.removesuffix("M")) * 2**20
    print(f"torch {torch.__version__}, {cpu()}, {os.cpu_count()} cores")
    print(f"{parameters} parameters in f32, {BYTES * parameters / 1e9:.2f} GB a step")
    for threads in map(int, asked.threads.split(",")):
        torch.set_num_threads(threads)
        print(f"threads {threads}")
        source = torch.ones(BYTES // 2 * parameters // 4)
        target = torch.zeros_like(source)
        report("  copy_", parameters, seconds(lambda: target.copy_(source)))
        if threads == 1:
            pair = target.numpy(), source.numpy()
            report("  numpy.copyto", parameters, seconds(lambda: np.copyto(*pair)))
            del pair
        report("  mul_ in place", parameters, seconds(lambda: target.mul_(-1)))
        del source, target
        for name, sizes in {
            "  AdamW(fused=True), one tensor": [parameters],
            "  AdamW(fused=True), 64 tensors": [parameters // 64] * 64,
        }.items():
            step = optimizer(sizes).step
            report(name, parameters, seconds(step))
            del step


if __name__ == "__main__":
    main()
