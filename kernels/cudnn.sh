#!/usr/bin/env bash
# Installs cuDNN 9.19 and what it opens (cuBLASLt, NVRTC; 1 GB in all, under NVIDIA's licence, never
# shipped) where the test `cudnn` looks for them. Needs pip; a GPU or a driver is not needed.
set -euo pipefail
cd "$(dirname "$0")/.."
into=target/cudnn
if [ ! -e "$into/nvidia/cudnn/lib/libcudnn.so.9" ]; then
    python3 -m pip install --quiet --no-deps --target "$into" \
        nvidia-cudnn-cu13==9.19.0.56 nvidia-cublas==13.1.0.3 nvidia-cuda-nvrtc==13.0.88
fi
echo "$into/nvidia"
