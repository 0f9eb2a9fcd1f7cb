"""A reference other than the base: what the policy is at some moment, frozen beside what is trained on.

A LoRA policy gets a second adapter that nothing trains, so that no weight is rounded; full fine-tuning has a frozen
copy of the model anyway.
"""

from __future__ import annotations

import copy
from pathlib import Path

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_model, save_model

from searchr1_mini.models import Policy
from searchr1_mini.weights import ADAPTER, REFERENCE, adapter_folder, save_adapter

COPY_FILE = "model.safetensors"


def freeze_reference(policy: Policy) -> None:
    """Makes the policy as it is now its reference, from now on; again and again, if wanted."""
    if policy.has_adapter:
        if not policy.has_own_reference:
            policy.model.add_adapter(REFERENCE, copy.deepcopy(policy.model.peft_config[ADAPTER]))
        weights = get_peft_model_state_dict(policy.model, adapter_name=ADAPTER, save_embedding_layers=False)
        set_peft_model_state_dict(policy.model, weights, adapter_name=REFERENCE)
    else:
        policy.frozen.load_state_dict(policy.model.state_dict())
    policy.has_own_reference = True


def save_reference(policy: Policy, folder: Path) -> None:
    """Writes `folder`/reference beside what `Policy.save` writes; nothing where the reference is the base."""
    if not policy.has_own_reference:
        return
    if policy.has_adapter:
        save_adapter(policy.model, REFERENCE, policy.base_name, folder)
    else:
        (folder / REFERENCE).mkdir(parents=True)
        save_model(policy.frozen, str(folder / REFERENCE / COPY_FILE))


def load_reference(policy: Policy, folder: Path) -> None:
    """Takes the reference that `save_reference` wrote into a folder; where it wrote none, it stays what it is.

    Raises:
        UserError: it is an adapter that holds no safetensors.
    """
    if not (folder / REFERENCE).is_dir():
        return
    if policy.has_adapter:
        policy.model.load_adapter(adapter_folder(folder / REFERENCE), adapter_name=REFERENCE)
    else:
        load_model(policy.frozen, folder / REFERENCE / COPY_FILE, device=str(policy.device))
    policy.has_own_reference = True
