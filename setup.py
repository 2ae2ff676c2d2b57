"""Yxanul: functional pretraining of small language models on one GPU."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
  name='yxanul',
  version='0.1.0',
  description='Functional pretraining of small language models on one GPU: FP8, length curriculum, SuperBPE.',
  long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  packages=find_packages(include=['yxanul', 'yxanul.*', 'experiments']),
  package_data={'yxanul.planning': ['fit.json']},
  python_requires='>=3.11',
  install_requires=[
    # The pre-release mark lets NVIDIA's own builds (2.11.0a0+...) stand; pip takes a CPU wheel where an index offers one.
    'torch>=2.11.0a0,<2.14',
    'absl-py>=2.1',
    'datasets>=3.0',
    'datasketch>=2.0',
    'einops>=0.8',
    'jinja2>=3.1',
    'matplotlib>=3.8',
    'ml-collections>=1.0',
    'numba>=0.61',
    'numpy>=1.26',
    'orbax-checkpoint>=0.11',
    'rich>=13.7',
    'safetensors>=0.4.3',
    'scipy>=1.11',
    'tokenizers>=0.21',
  ],
  extras_require={
    'gpu': ['transformer-engine[pytorch]>=2.9', 'nvidia-ml-py>=12'],  # --no-build-isolation, with torch installed before
    'eval': ['lm-eval>=0.4.9'],
    'tensorboard': ['tensorboard>=2.16'],
    'wandb': ['wandb>=0.31'],
    'test': [
      'hypothesis>=6.100',
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'ruff>=0.8',
      'tensorboard>=2.16',
      'transformers>=4.50',
      'triton; platform_system == "Linux"',  # whose interpreter runs the kernels on a CPU
      'wandb>=0.31',
    ],
  },
)
