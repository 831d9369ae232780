"""Why a device does not take work that it is offered."""

from collections.abc import Sized
from pathlib import Path

from sparsyfed.devices.dataset import Dataset
from sparsyfed.devices.settings import AgentSettings
from sparsyfed.devices.training import require_fitting_data
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import SparsyFedError
from sparsyfed.edge_runtime.messages import Offer
from sparsyfed.edge_runtime.plan import plan


def refusal_of_plan(artifact: Path, state: Path, batch_size: int, memory_bytes: int) -> str | None:
    """Why this work does not fit `memory_bytes` by the device's own plan, or None if it does."""
    try:
        plan(artifact, state.read_bytes(), batch_size, arena_bytes=memory_bytes)
    except SparsyFedError as error:
        return str(error)
    return None


def refusal_of_data(artifact: Path, dataset: Sized) -> str | None:
    """Why the device's data are not what this model takes, or None if they are.

    What a board collects has no shape of its own: it takes that of the model.
    """
    if not isinstance(dataset, Dataset):
        return None
    try:
        require_fitting_data(Artifact.load(artifact), dataset)
    except SparsyFedError as error:
        return str(error)
    return None


def refusal_of_offer(offer: Offer, settings: AgentSettings) -> str | None:
    """Why this offer is declined before anything is pulled, or None."""
    if offer.backend != settings.backend:
        return f"work for {offer.backend}, this device trains with {settings.backend}"
    if offer.export is not None and offer.export.memory_bytes > settings.memory_bytes:
        return (
            f"training was measured to take {offer.export.memory_bytes} bytes on {offer.backend}, "
            f"this device has {settings.memory_bytes}"
        )
    size = sum(reference.size for reference in offer.objects)
    if size > settings.max_offer_bytes:
        return f"objects of {size} bytes are over this device's limit of {settings.max_offer_bytes}"
    for reference in offer.objects:
        if reference.block_bytes > settings.block_bytes:
            return (
                f"blocks of {reference.block_bytes} bytes are over this device's "
                f"{settings.block_bytes}"
            )
    return None
