#!/usr/bin/env bash
# Gradescope runs this file once, when it builds the container.
set -e
apt-get update
apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
pip=/autograder/venv/bin/pip
$pip install torch --index-url https://download.pytorch.org/whl/cpu
$pip install numpy einops safetensors regex ftfy filelock jinja2 matplotlib pillow pyyaml tqdm
