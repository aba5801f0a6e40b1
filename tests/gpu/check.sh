#!/usr/bin/env bash
# Everything that needs a real card. Parts run in the order given, within LIMIT seconds in all
# (default: 480, none takes longer); what fails or finds no time is named and left out:
#
#   tests/gpu/check.sh PART…    parity | sanitize | profile | 64k | own-64k | hf-64k | 128k | hf-128k |
#                               256k | 1m | llama | methods | eight | table
#
# Where time is short: parity profile 64k 256k hf-64k table.
# Binaries are carried, nothing is compiled here. Before, on the machine that builds:
#   cargo build --release && cargo test --release --test gpu --no-run
#   mkdir -p carried && strip -o carried/ebbtide target/release/ebbtide
#   strip -o carried/gpu target/release/deps/gpu-…
# Each part adds to the folder RESULTS (default: gpu-results), and all of it is in RESULTS.tar.gz at
# the end. `table` shows what there is; a profile that an earlier call measured serves later ones from
# there. Without one, plans are made for the shipped H100.
# hf_step.py, which needs torch and transformers, times HF's step on the same card.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
ebbtide=${EBBTIDE:-carried/ebbtide}
tests=${GPU_TESTS:-carried/gpu}
out=${RESULTS:-gpu-results}
measured=$out/llama-2-7b.profile.json
profile=h100-sxm5-80gb
if [ -e "$measured" ]; then profile=$measured; fi
mkdir -p "$out"
# Where NVIDIA's wheels are, and its tools.
if [ -z "${VIRTUAL_ENV:-}" ] && command -v python3 >/dev/null; then
    VIRTUAL_ENV=$(python3 -c 'import sys; print(sys.prefix)')
    export VIRTUAL_ENV
fi
PATH=$PATH:/usr/local/cuda/bin
# Kernels are compiled once.
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-${HOME:-$PWD/$out}/.cache}

# The numbers that are wanted are of an H100 with 80 GB and a host of 125 GiB: what others have more
# is left unused. A host that has less leaves 10 GiB for everything else.
free_gib=$(awk '/MemAvailable/ {print int($2 / 2 ^ 20)}' /proc/meminfo)
host=$((free_gib - 10 < 110 ? free_gib - 10 : 110))GiB
budget=(--device-memory 72GiB --host-memory "$host")

memory() {
    nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total,clocks.sm \
        --format=csv,noheader || true
    grep -E 'MemTotal|MemAvailable' /proc/meminfo
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
    execute "$name" "$name" "$steps" "${timed[@]}"
    memory >"$out/$name.memory-after.txt"
}

# Runs a schedule: SCHEDULE NAME STEPS [flags of run …]
execute() {
    local schedule=$1 name=$2 steps=$3
    shift 3
    "$ebbtide" run "$out/$schedule.schedule.json" --device cuda:0 --steps "$steps" --lr 1e-6 "$@" \
        -o "$out/$name.run.json" | tee "$out/$name.run.txt"
    grep 'attention' "$out/$name.run.txt" | grep -v 'by cuDNN' || true
}

# HF's step: NAME MODEL SEQ [flags of hf_step.py …]
hf() {
    local name=$1 model=$2 seq=$3 config
    shift 3
    config=$(mktemp -d)
    cp "profiles/models/$model.json" "$config/config.json"
    timeout --foreground 260 python3 tests/gpu/hf_step.py "$config" "$seq" "$@" | tee "$out/$name.hf.json"
}

part() {
    case $1 in
    parity)
        # Each test by itself: a fault of the card ends a process's context. With both attentions:
        # cuDNN has to be there.
        memory
        export EBBTIDE_REQUIRE_GPU=1 EBBTIDE_REQUIRE_CUDNN=1
        local names name log failed=0
        names=$("$tests" --list --format terse | sed -n 's/: test$//p')
        [ -n "$names" ]
        for name in $names; do
            log=$out/parity-${name//::/-}.txt
            timeout --foreground 150 "$tests" --exact "$name" >"$log" 2>&1 ||
                { failed=1 && tail -n 20 "$log"; }
            sed -n 's/^test \(.* \.\.\. \)/\1/p; s/^test result.*finished in/  /p' "$log" | paste -sd ' '
        done
        return "$failed"
        ;;
    sanitize)
        # Accesses out of bounds, and shared memory that threads race for.
        local tool failed=0
        for tool in memcheck racecheck; do
            timeout --foreground 200 compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests" --exact \
                attention::attention_by_cudnn_and_by_ours 2>&1 | tee "$out/$tool.txt" |
                tail -n 5 || failed=1
        done
        return "$failed"
        ;;
    profile)
        # Goes on where it was interrupted.
        timeout --foreground 450 "$ebbtide" profile --model llama-2-7b --device cuda:0 --seq 4k,16k,64k \
            -o "$measured" | tee "$out/profile.txt"
        ;;
    64k) step 7b-64k llama-2-7b "$profile" 64k 3 --method lomo "${budget[@]}" ;;
    # The same with our own attention: what cuDNN's is worth.
    own-64k) execute 7b-64k 7b-64k-own 1 --deterministic ;;
    hf-64k) hf 7b-64k llama-2-7b 65536 --steps 2 ;;
    128k) step 7b-128k llama-2-7b "$profile" 128k 2 --method lomo "${budget[@]}" ;;
    hf-128k) hf 7b-128k llama-2-7b 131072 --offload --steps 1 ;;
    256k) step 7b-256k llama-2-7b "$profile" 256k 1 --method lomo "${budget[@]}" ;;
    1m)
        # All 32 blocks are planned, two are run: a call has 8 minutes.
        timeout --foreground 120 "$ebbtide" fit --model llama-2-7b --profile "$profile" --method lomo \
            "${budget[@]}" | tee "$out/fit.txt" || echo "fit did not end, or not in time" >&2
        local few=$out/llama-2-7b-2-blocks.json
        sed 's/"num_hidden_layers": *[0-9]*/"num_hidden_layers": 2/' \
            profiles/models/llama-2-7b.json >"$few"
        step 7b-1m-2-blocks "$few" "$profile" 1m 1 --method lomo "${budget[@]}"
        ;;
    llama)
        local of_llama=$out/llama-3.1-8b.profile.json
        timeout --foreground 300 "$ebbtide" profile --model llama-3.1-8b --device cuda:0 --seq 4k,32k \
            -o "$of_llama"
        step 8b-32k llama-3.1-8b "$of_llama" 32k 3 --method adamw "${budget[@]}"
        ;;
    methods)
        # A step of llama-2-7b at 16k by every method.
        local method more left failed=0
        for method in lomo adalomo sgd adamw-bf16-sr adamw8bit flora flora-sums apollo-mini apollo \
            galore fira compact; do
            more=()
            case $method in
            # Over micro-batches its gradients are added up in a space of low rank.
            flora-sums) more=(--accumulate 2) ;;
            flora | apollo* | galore | fira | compact) more=(--per-layer) ;;
            esac
            left=$((${LEFT:-450} - SECONDS))
            [ "$left" -gt 0 ] || left=1
            timeout -s KILL $((left < 90 ? left : 90)) "$self" step "methods-$method" llama-2-7b "$profile" 16k 2 \
                --method "${method%-sums}" "${more[@]}" --host-memory "$host" ||
                { failed=1 && echo "$method did not run, or not in time" >&2; }
        done
        return "$failed"
        ;;
    eight)
        # What travels in 8 bits, with memory so short that it does; products in 8 bits, by the
        # shipped profile, since none that is measured has a peak for FP8.
        local allow failed=0
        "$self" step 7b-64k-packed llama-2-7b "$profile" 64k 2 --method lomo --allow fp8-storage \
            --device-memory 40GiB --host-memory "$host" || failed=1
        for allow in fp8-compute int8-compute qat-int8; do
            "$self" step "7b-16k-$allow" llama-2-7b h100-sxm5-80gb 16k 2 --method lomo \
                --allow "$allow" --host-memory "$host" || failed=1
        done
        return "$failed"
        ;;
    table) python3 tests/gpu/table.py "$out" | tee "$out/table.txt" ;;
    *)
        echo "no part is called $1; there is:" >&2
        usage
        ;;
    esac
}

# What this file begins with, without the #.
usage() {
    sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$self" >&2
    exit 2
}

case ${1:-} in
'') usage ;;
part) part "$2" ;;
step)
    shift
    step "$@"
    ;;
*)
    failed=0
    for name in "$@"; do
        left=$((${LIMIT:-480} - SECONDS)) before=$SECONDS
        # What there is, is shown.
        if [ "$name" = table ]; then left=60; fi
        if [ "$left" -lt 10 ]; then
            echo "==== $name: no time is left" && failed=1 && continue
        fi
        echo "==== $name"
        # With all that it began: what trains ends between steps only.
        LEFT=$left timeout -s KILL "$left" "$self" part "$name" || { failed=1 && echo "==== $name failed" >&2; }
        echo "==== $name: $((SECONDS - before)) s"
    done
    tar -czf "$out.tar.gz" -C "$out" . || failed=1
    exit "$failed"
    ;;
esac
