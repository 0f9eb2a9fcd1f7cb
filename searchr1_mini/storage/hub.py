"""Whether the hub answers, asked once and quickly: its own client retries each file for most of a minute."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PROBE_SECONDS = 10


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Tells whether the hub, or the mirror that HF_ENDPOINT names, answers; False where HF_HUB_OFFLINE is set.

    Where it does not, its libraries are switched to what HF_HUB_OFFLINE does: to their cache, without a request.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    replies = []

    def ask() -> None:
        with suppress(Exception):  # which errors there are depends on the client's version; any of them is a no
            replies.append(get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS))

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name cannot be given a deadline
    asking.start()
    asking.join(PROBE_SECONDS)
    if not replies:  # `local_files_only` is not handed on to every request
        constants.HF_HUB_OFFLINE = True
    return bool(replies)


def ask_hub_first(source: str) -> bool:
    """Tells whether a folder or hub id must come from this machine: a folder, or a hub that does not answer."""
    return Path(source).exists() or not hub_answers()


def hub_file(model: str, name: str) -> Path | None:
    """Fetches a small file of a model on the hub, from the cache if the hub does not answer; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model, name, local_files_only=not hub_answers()))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):  # whoever loads the model says why
        return None


def hide_loading_bars() -> None:
    """Hides transformers' bars of what it loads from disk, unless `--verbose` wants them; those of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    is_quiet, shows_downloads = os.environ.get("TRANSFORMERS_VERBOSITY") == "error", not are_progress_bars_disabled()
    if is_quiet and logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
        if shows_downloads:
            enable_progress_bars()
