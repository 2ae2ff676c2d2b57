# Yxanul on NVIDIA's PyTorch image: NVIDIA's torch, Transformer Engine and flash-attn stay exactly as they come, and the
# build fails where installing the project would change them.
#
#   docker build -t yxanul .
#   mkdir -p runs
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --user "$(id -u):$(id -g)" -e HOME=/tmp \
#     -v "$PWD/runs:/workspace/yxanul/runs" yxanul \
#     python -m yxanul.main --config=experiments/ultra.py:gpu=h100 --workdir=runs/ultra
#
# (--user, so that the files under runs/ are yours; without it the container runs as its own user, no root either.)
#
# Which tag. Yxanul needs torch 2.11 or later; 26.02 is the first image that has it:
#   25.12  torch 2.10.0a0+b4e4ee81d3                NVIDIA's release notes (rel-25-12)
#   26.01  torch 2.10.0a0+a36e1d39eb.nv26.01        as printed in public reports of users of that tag
#   26.02  torch 2.11.0a0+eb65b36914.nv26.02, CUDA 13.1, Python 3.12, flash-attn 2.7.4.post1   likewise
#   26.03  torch 2.11.0a0+a6c236b9fd.nv26.03, CUDA 13.2                                        likewise
# Confidence: high for the torch versions (many independent reports agree), but NVIDIA's own notes for 26.01 to 26.03 were
# not at hand, and neither was a Docker engine: this file has been checked statically and its installation step tried with
# stand-ins for NVIDIA's packages, but the image has not been built. Which Transformer Engine 26.02 carries is not
# confirmed; nvidia_pins.py prints it. If the tag turns out to be too old, the first RUN below says so and stops.
#
# The mission claims its figures for 24.10 (nvcr.io/nvidia/pytorch:24.10-py3) and counts 1.2x for it. That image's torch is
# 2.5, too old for this code; the claim stays a claim until it is measured.
ARG NVIDIA_PYTORCH_TAG=26.02-py3
FROM nvcr.io/nvidia/pytorch:${NVIDIA_PYTORCH_TAG}

WORKDIR /workspace/yxanul
COPY third_party/nvidia_pins.py third_party/constraints.txt third_party/
RUN python third_party/nvidia_pins.py record third_party/nvidia_constraints.txt --torch-at-least 2.11

COPY setup.py README.md ./
COPY yxanul yxanul
COPY experiments experiments
COPY tests tests
COPY Dockerfile .dockerignore .pytest.ini .ruff.toml ./
# PIP_CONSTRAINT replaces, for this step only, NVIDIA's /etc/pip/constraint.txt, which holds every package of the image where
# it was: packages that have nothing to do with the GPU may move.
RUN PIP_CONSTRAINT="$PWD/third_party/nvidia_constraints.txt $PWD/third_party/constraints.txt" \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    python -m pip install --no-cache-dir -e '.[test]' \
 && python third_party/nvidia_pins.py check third_party/nvidia_constraints.txt \
 && python -m yxanul.main --list

# Not 1000: Ubuntu 24.04 images already have a user with that id.
ARG USER_ID=10001
RUN useradd --create-home --uid "${USER_ID}" --user-group yxanul \
 && mkdir -p runs \
 && chown yxanul:yxanul runs
USER yxanul
ENV HOME=/home/yxanul
CMD ["python", "-m", "yxanul.main", "--list"]
