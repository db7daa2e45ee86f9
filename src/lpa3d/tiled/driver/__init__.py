"""The driver of tiled runs: grid, scratch, journal, schedulers, budget, outputs; it knows no verb's stages."""
