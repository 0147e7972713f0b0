"""Models by name from the Hugging Face hub: its cache first, then, for a name the user gave, the hub.

`HF_HOME` says where the cache is and `HF_HUB_OFFLINE=1` forbids asking the hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ragembed.errors import ModelNotFound

# Weights in safetensors, configuration and vocabularies; nothing that could be run or unpickled.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]


def find_or_download(name: str) -> Path:
    """The folder of a hub model, downloaded if it is not in the cache.

    Args:
        name: `owner/model`, or a bare model name, which means `sentence-transformers/model`.

    Raises:
        ModelNotFound: not a model name, or neither the cache nor the hub has it.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelNotFound(
            f"there is no model folder {name!r}; give a local folder or a hub name like owner/model"
        )
    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=_WANTED, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    except ValueError as error:
        raise ModelNotFound(f"{name!r} is no model name ({error})") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotFound(
            f"there are no weights for {name!r} on this machine, and the hub did not give them "
            f"({lines[0]}); give a local folder, or check the name and the connection"
        ) from None
