"""Adapter folders: read strictly, written atomically, inspected; no torch, transformers or peft in here."""

from lingualift.adapters.folder import Adapter, open_adapter, write_adapter

__all__ = ["Adapter", "open_adapter", "write_adapter"]
