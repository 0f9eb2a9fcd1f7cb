"""Search-R1 on one GPU: reinforcement learning that teaches a language model to search (arXiv 2503.09516)."""

import os

# nothing is counted or reported: what the libraries send when they load something is switched off, unless it was set
for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and all that loads by it
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers would ask a service of the hub to convert pickled weights
    "USE_HUB_KERNELS": "0",  # transformers would fetch compiled code from the hub where `kernels` is installed
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
