"""Placeholder of the group layer while it is being written: only `group_layer=none`."""

from dataclasses import dataclass


@dataclass
class GroupLayerConfig:
    name: str

    def check(self, d_sae: int) -> None:
        pass

    def inert(self) -> dict[str, str]:
        return {}

    def active_at_inference(self) -> list[str]:
        return []


CONFIG = GroupLayerConfig
COMPONENT = None
