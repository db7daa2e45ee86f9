"""Which labels are one object: contacts, merging, chains of sections, fused sources."""
