"""Policy, reference and critic written to a folder, and read from one."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, load_model, save_file, save_model

from searchr1_mini.core.critic import Critic
from searchr1_mini.core.names import ADAPTER, CRITIC, REFERENCE
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.identity import BASE_FILE
from searchr1_mini.models.weights import adapter_folder, save_adapter
from searchr1_mini.storage.files import write_json_atomic

REFERENCE_FILE, CRITIC_FILE, HEAD_FILE = "model.safetensors", "critic.safetensors", "value_head.safetensors"


def save_policy(policy: Policy, folder: Path) -> None:
    """Writes the adapter, or the whole model in full fine-tuning, the tokenizer, and what base they belong to."""
    if policy.has_adapter:
        save_adapter(policy.model, ADAPTER, policy.base_name, folder)
    else:
        policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    write_json_atomic(folder / BASE_FILE, policy.base_identity)


def save_reference(policy: Policy, folder: Path) -> None:
    """Writes `folder`/reference beside what `save_policy` writes; nothing where the reference is the base."""
    if not policy.has_own_reference:
        return
    if policy.has_adapter:
        save_adapter(policy.model, REFERENCE, policy.base_name, folder)
    else:
        (folder / REFERENCE).mkdir(parents=True)
        save_model(policy.frozen, str(folder / REFERENCE / REFERENCE_FILE))


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
        load_model(policy.frozen, folder / REFERENCE / REFERENCE_FILE, device=str(policy.device))
    policy.has_own_reference = True


def save_critic(critic: Critic, folder: Path) -> None:
    """Writes the critic's adapter (or copy) and its head."""
    folder.mkdir(parents=True, exist_ok=True)
    if critic.copy is not None:
        save_model(critic.copy, str(folder / CRITIC_FILE))
    else:
        save_adapter(critic.policy.model, CRITIC, critic.policy.base_name, folder)
    save_file(critic.head.state_dict(), folder / HEAD_FILE)


def load_critic(critic: Critic, folder: Path) -> None:
    """Takes what `save_critic` wrote.

    Raises:
        UserError: it is an adapter that holds no safetensors.
    """
    device = str(critic.policy.device)
    critic.head.load_state_dict(load_file(folder / HEAD_FILE, device=device))
    if critic.copy is not None:
        load_model(critic.copy, folder / CRITIC_FILE, device=device)
        return
    critic.policy.model.load_adapter(adapter_folder(folder / CRITIC), adapter_name=CRITIC, is_trainable=True)
    critic.policy.activate(ADAPTER)
