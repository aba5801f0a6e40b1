#!/usr/bin/env bash
# Everything that needs a real card, in parts that each stay under 8 minutes:
#
#   tests/gpu/check.sh parity | profile | runs | long | llama | eight | table
#
# Binaries are carried, nothing is compiled here. Before, on the machine that builds:
#   cargo build --release && cargo test --release --test gpu --no-run
#   mkdir -p carried && cp target/release/ebbtide carried/ && cp target/release/deps/gpu-… carried/gpu
# Each part adds to $OUT (default: gpu-results); `table` comes last and shows what there is.
# With torch and transformers at hand, `runs` times HF's step in the same call (hf_step.py).
set -euo pipefail
cd "$(dirname "$0")/../.."
ebbtide=${EBBTIDE:-carried/ebbtide}
tests=${GPU_TESTS:-carried/gpu}
out=${OUT:-gpu-results}
mkdir -p "$out"

memory() {
    nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total,clocks.sm \
        --format=csv,noheader || true
}

# Plans and runs a step: NAME MODEL PROFILE SEQ STEPS [flags of plan …]
step() {
    local name=$1 model=$2 profile=$3 seq=$4 steps=$5
    shift 5
    "$ebbtide" plan --model "$model" --profile "$profile" --seq "$seq" "$@" \
        -o "$out/$name.schedule.json" | tee "$out/$name.plan.txt"
    memory >"$out/$name.memory-before.txt"
    local timed=()
    if [[ -f $profile ]]; then timed=(--profile "$profile"); fi
    "$ebbtide" run "$out/$name.schedule.json" --device cuda:0 --steps "$steps" --lr 1e-6 \
        "${timed[@]}" -o "$out/$name.run.json" | tee "$out/$name.run.txt"
    memory >"$out/$name.memory-after.txt"
}

# HF's step: NAME MODEL SEQ [--offload]
hf() {
    local name=$1 model=$2 seq=$3
    shift 3
    if python3 -c 'import torch, transformers' 2>/dev/null; then
        local config
        config=$(mktemp -d)
        cp "profiles/models/$model.json" "$config/config.json"
        timeout 200 python3 tests/gpu/hf_step.py "$config" "$seq" "$@" | tee "$out/$name.hf.json" ||
            echo "HF's step at $seq tokens failed" >&2
    else
        echo "HF's step is left out: no torch or no transformers" >&2
    fi
}

case ${1:-} in
parity)
    memory
    EBBTIDE_REQUIRE_GPU=1 timeout 450 "$tests" --test-threads 1 | tee "$out/parity.txt"
    ;;
profile)
    # Goes on where it was interrupted.
    timeout 450 "$ebbtide" profile --model llama-2-7b --device cuda:0 --seq 4k,16k,64k \
        -o "$out/llama-2-7b.profile.json" | tee "$out/profile.txt"
    ;;
runs)
    profile=$out/llama-2-7b.profile.json
    step 7b-64k llama-2-7b "$profile" 64k 3 --method lomo
    step 7b-128k llama-2-7b "$profile" 128k 2 --method lomo
    hf 7b-64k llama-2-7b 65536
    ;;
long)
    # All 32 blocks at 256k, and at 1m the longest that one call allows.
    profile=$out/llama-2-7b.profile.json
    step 7b-256k llama-2-7b "$profile" 256k 1 --method lomo
    "$ebbtide" fit --model llama-2-7b --profile "$profile" --method lomo | tee "$out/fit.txt"
    ;;
llama)
    profile=$out/llama-3.1-8b.profile.json
    timeout 300 "$ebbtide" profile --model llama-3.1-8b --device cuda:0 --seq 4k,32k -o "$profile"
    step 8b-32k llama-3.1-8b "$profile" 32k 3 --method adamw
    ;;
eight)
    # What travels in 8 bits, with memory so short that it does; products in 8 bits, by the shipped
    # profile, since none that is measured has a peak for FP8.
    profile=$out/llama-2-7b.profile.json
    step 7b-64k-packed llama-2-7b "$profile" 64k 2 --method lomo --allow fp8-storage \
        --device-memory 40GiB
    for allow in fp8-compute int8-compute qat-int8; do
        step "7b-16k-$allow" llama-2-7b h100-sxm5-80gb 16k 2 --method lomo --allow "$allow"
    done
    ;;
table)
    printf '%-12s %14s %14s %9s %14s\n' run predicted_s measured_s ratio hf_s
    for file in "$out"/*.run.json; do
        name=$(basename "$file" .run.json)
        python3 - "$file" "$out/$name.hf.json" "$name" <<'PY'
import json, os, sys
run = json.load(open(sys.argv[1]))
hf = json.load(open(sys.argv[2]))["step_s"] if os.path.exists(sys.argv[2]) else float("nan")
predicted, measured = (run[key]["step_ns"] / 1e9 for key in ("predicted", "measured"))
print(f"{sys.argv[3]:12} {predicted:14.3f} {measured:14.3f} {measured / predicted:9.3f} {hf:14.3f}")
PY
    done | tee "$out/table.txt"
    ;;
*)
    sed -n '2,11p' "$0" >&2
    exit 2
    ;;
esac
