"""Adapter folders: read strictly, written atomically, inspected; no torch, transformers or peft in here."""

from lingualift.adapters.folder import Adapter, open_adapter, write_adapter
from lingualift.adapters.inspection import Inspection, inspect

__all__ = ["Adapter", "Inspection", "inspect", "open_adapter", "write_adapter"]
