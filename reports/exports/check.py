"""Opens what `ebbtide simulate --trace T --memory-snapshot M` wrote, as strictly as a viewer might.

    python3 check.py T.json M.pickle

The trace is checked by the Chrome trace event format (what Perfetto's importer reads), the
snapshot by the sums that PyTorch's viewer relies on, and, where torch is installed, by the
functions of `torch.cuda._memory_viz` themselves. Ends with an AssertionError at the first fault.
"""

import collections
import json
import pickle
import sys


def check_trace(path):
    with open(path) as file:
        trace = json.load(file)
    events = trace["traceEvents"]
    phases = collections.Counter(event["ph"] for event in events)
    rows, flows, counters = (collections.defaultdict(list) for _ in range(3))
    names = {}
    for event in events:
        assert event["ph"] in "XMCsf" and isinstance(event["name"], str), event
        assert isinstance(event["pid"], int), event
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                names[event["tid"]] = event["args"]["name"]
            continue
        assert isinstance(event["ts"], (int, float)) and event["ts"] >= 0, event
        if event["ph"] == "X":
            assert event["dur"] >= 0, event
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert all(value >= 0 for value in event["args"].values()), event
            counters[event["name"]].append(event["ts"])
        else:
            flows[event["cat"], event["id"]].append(event)
    # Every row has a name; its slices come in order and do not overlap.
    for (_, tid), slices in rows.items():
        assert tid in names, tid
        assert slices == sorted(slices), names[tid]
        for (_, end), (start, _) in zip(slices, slices[1:]):
            # Microseconds are doubles: a nanosecond is the least that means something.
            assert end <= start + 1e-3, (names[tid], end, start)
    for name, times in counters.items():
        assert all(a < b for a, b in zip(times, times[1:])), name
    # Every arrow has a start and, later, an end, both inside a slice of their rows.
    for arrow, ends in flows.items():
        assert [end["ph"] for end in ends] == ["s", "f"], arrow
        assert ends[0]["ts"] <= ends[1]["ts"] and ends[1]["bp"] == "e", arrow
        for end in ends:
            slices = rows[end["pid"], end["tid"]]
            assert any(start <= end["ts"] <= stop for start, stop in slices), end
    counted = {name: len(times) for name, times in counters.items()}
    sizes = {names[tid]: len(slices) for (_, tid), slices in rows.items()}
    print(f"trace: {dict(phases)}, rows {sizes}, arrows {len(flows)}, counters {counted}: ok")


def check_snapshot(path):
    with open(path, "rb") as file:
        snapshot = pickle.load(file)
    (segment,) = snapshot["segments"]
    (events,) = snapshot["device_traces"]
    base, size = segment["address"], segment["total_size"]
    live, peak, now = {}, 0, 0
    for event in events[1:]:
        assert event["time_us"] >= now, event
        now = event["time_us"]
        first, last = event["addr"], event["addr"] + event["size"]
        if event["action"] == "alloc":
            assert base <= first and last <= base + size, event
            assert all(last <= a or a + s <= first for a, s in live.items()), event
            live[first] = event["size"]
            peak = max(peak, sum(live.values()))
        elif event["action"] == "free_completed":
            assert live.pop(first) == event["size"], event
    at = base
    for block in segment["blocks"]:
        assert block["address"] == at, block
        at += block["size"]
        if block["state"] == "active_allocated":
            assert live.pop(block["address"]) == block["requested_size"], block
    assert at == base + size and not live
    print(f"snapshot: {len(events)} events, {peak} bytes at most of {size}: ok")
    return snapshot


def open_with_torch(snapshot):
    try:
        import torch
        from torch.cuda import _memory_viz as viewer
    except ImportError:
        print("torch is not installed: its viewer was not asked")
        return
    def lines(text):
        return text

    # What draws flame graphs is fetched from the net; what it is given is not.
    shown = {
        "trace": viewer.trace(snapshot),
        "segsum": viewer.segsum(snapshot),
        "memory": viewer.memory(snapshot, format_flamegraph=lines),
        "segments": viewer.segments(snapshot, format_flamegraph=lines),
        "trace_plot": viewer.trace_plot(snapshot),
        "segment_plot": viewer.segment_plot(snapshot),
    }
    for name, text in shown.items():
        assert text.strip() and ("plot" not in name or "<" in text), name
    counted = ", ".join(f"{name} {len(text)}" for name, text in shown.items())
    print(f"torch {torch.__version__}, characters: {counted}: ok")


if __name__ == "__main__":
    check_trace(sys.argv[1])
    open_with_torch(check_snapshot(sys.argv[2]))
