"""The frozen model: found, checked, loaded, told from any other, and what differs between architectures."""

from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import BackboneRef, find_backbone, load_tokenizer

__all__ = ["BackboneRef", "find_backbone", "load_backbone", "load_tokenizer"]
