#!/usr/bin/env bash
# Installs NVIDIA's run-time compiler (90 MB; under NVIDIA's licence, never shipped) where the test
# `kernels` looks for it. Needs pip; a GPU or a driver is not needed.
set -euo pipefail
cd "$(dirname "$0")/.."
into=target/nvrtc
if [ ! -e "$into/nvidia/cu13/lib/libnvrtc.so.13" ]; then
    python3 -m pip install --quiet --no-deps --target "$into" nvidia-cuda-nvrtc==13.0.88
fi
echo "$into/nvidia/cu13/lib"
