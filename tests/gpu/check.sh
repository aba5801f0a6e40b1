#!/usr/bin/env bash
# Everything that needs a real card, in parts that each stay under 8 minutes:
#
#   tests/gpu/check.sh parity | profile | 64k | 128k | 256k | 1m | llama | methods | eight | table
#
# Binaries are carried, nothing is compiled here. Before, on the machine that builds:
#   cargo build --release && cargo test --release --test gpu --no-run
#   mkdir -p carried && cp target/release/ebbtide carried/ && cp target/release/deps/gpu-… carried/gpu
# Each part adds to $OUT (default: gpu-results); `table` comes last and shows what there is.
# With torch and transformers at hand, 64k and 128k time HF's step in the same call (hf_step.py).
set -euo pipefail
cd "$(dirname "$0")/../.."
ebbtide=${EBBTIDE:-carried/ebbtide}
tests=${GPU_TESTS:-carried/gpu}
out=${OUT:-gpu-results}
profile=$out/llama-2-7b.profile.json
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

# HF's step: NAME MODEL SEQ [flags of hf_step.py …]
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
    # With both attentions: cuDNN has to be there.
    EBBTIDE_REQUIRE_GPU=1 EBBTIDE_REQUIRE_CUDNN=1 timeout 450 "$tests" --test-threads 1 |
        tee "$out/parity.txt"
    ;;
profile)
    # Goes on where it was interrupted.
    timeout 450 "$ebbtide" profile --model llama-2-7b --device cuda:0 --seq 4k,16k,64k \
        -o "$profile" | tee "$out/profile.txt"
    ;;
64k)
    step 7b-64k llama-2-7b "$profile" 64k 3 --method lomo
    # The same with our own attention: what cuDNN's is worth.
    "$ebbtide" run "$out/7b-64k.schedule.json" --device cuda:0 --steps 1 --lr 1e-6 \
        --deterministic -o "$out/7b-64k-own.run.json" | tee "$out/7b-64k-own.run.txt"
    hf 7b-64k llama-2-7b 65536
    ;;
128k)
    step 7b-128k llama-2-7b "$profile" 128k 2 --method lomo
    hf 7b-128k llama-2-7b 131072 --offload --steps 1
    ;;
256k)
    step 7b-256k llama-2-7b "$profile" 256k 1 --method lomo
    ;;
1m)
    # All 32 blocks are planned, two are run: a call has 8 minutes.
    "$ebbtide" fit --model llama-2-7b --profile "$profile" --method lomo | tee "$out/fit.txt"
    few=$out/llama-2-7b-2-blocks.json
    python3 -c 'import json, sys; config = json.load(sys.stdin); config["num_hidden_layers"] = 2
json.dump(config, sys.stdout)' <profiles/models/llama-2-7b.json >"$few"
    step 7b-1m-2-blocks "$few" "$profile" 1m 1 --method lomo
    ;;
llama)
    profile=$out/llama-3.1-8b.profile.json
    timeout 300 "$ebbtide" profile --model llama-3.1-8b --device cuda:0 --seq 4k,32k -o "$profile"
    step 8b-32k llama-3.1-8b "$profile" 32k 3 --method adamw
    ;;
methods)
    # A step of llama-2-7b at 16k by every method, with the measured profile if there is one. What
    # does not run is named and left out.
    [ -e "$profile" ] || profile=h100-sxm5-80gb
    end=$(($(date +%s) + 450))
    for method in lomo adalomo sgd adamw-bf16-sr adamw8bit flora flora-sums apollo-mini apollo galore \
        fira compact; do
        more=()
        case $method in
        # Over micro-batches its gradients are added up in a space of low rank.
        flora-sums) more=(--accumulate 2) ;;
        flora | apollo* | galore | fira | compact) more=(--per-layer) ;;
        esac
        left=$((end - $(date +%s)))
        [ "$left" -gt 0 ] || left=1
        timeout $((left < 90 ? left : 90)) tests/gpu/check.sh step "methods-$method" \
            llama-2-7b "$profile" 16k 2 --method "${method%-sums}" "${more[@]}" ||
            echo "$method did not run, or not in time" >&2
    done
    tests/gpu/check.sh table
    ;;
step)
    shift
    step "$@"
    ;;
eight)
    # What travels in 8 bits, with memory so short that it does; products in 8 bits, by the shipped
    # profile, since none that is measured has a peak for FP8.
    step 7b-64k-packed llama-2-7b "$profile" 64k 2 --method lomo --allow fp8-storage \
        --device-memory 40GiB
    for allow in fp8-compute int8-compute qat-int8; do
        step "7b-16k-$allow" llama-2-7b h100-sxm5-80gb 16k 2 --method lomo --allow "$allow"
    done
    ;;
table)
    python3 tests/gpu/table.py "$out" | tee "$out/table.txt"
    ;;
*)
    # What this file begins with, without the #.
    sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
