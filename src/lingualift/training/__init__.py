"""Training adapters: encoding, packing, and the one trainer."""
