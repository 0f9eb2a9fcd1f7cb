"""A saved adapter onto its base: by the names of its tensors, whatever pattern its config has."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.models.adapter_check import module_names, searches_for_modules
from searchr1_mini.models.weights import ADAPTER_CONFIG, ADAPTER_FILE, adapter_folder
from searchr1_mini.storage.files import read_json


def load_adapter(base: nn.Module, folder: Path, source: str) -> PeftModel:
    """Loads the policy's adapter of a folder onto the base.

    Raises:
        UserError: the adapter is no plain LoRA in safetensors, or of another base.
    """
    folder = adapter_folder(folder, may_search=True)
    try:
        with safe_open(folder / ADAPTER_FILE, "pt") as file:
            config = LoraConfig.from_pretrained(folder)
            config.lora_dropout = 0.0  # rollout and update see the same distribution
            if searches_for_modules(read_json(folder / ADAPTER_CONFIG)):  # a pattern of strangers may search for ever
                config.target_modules, config.exclude_modules = set(module_names(file.keys())), None
                config.layers_to_transform = config.layers_pattern = None
            model = PeftModel.from_pretrained(base, folder, adapter_name=ADAPTER, is_trainable=True, config=config)
            own = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
            odd = {name for name in set(file.keys()) ^ set(own) if ".base_layer." not in name}
        if odd:  # peft would leave these as they are; what it saves of the base beside an adapter, the probe sees
            raise ValueError(f"{len(odd)} tensors have no counterpart, {min(odd)} among them")
        return model
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"the adapter {folder} does not go onto {source} ({' '.join(str(error).split())[:150]}); give the "
            "base that it was trained on, or an adapter of this one"
        ) from error
