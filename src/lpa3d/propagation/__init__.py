"""The stages of `propagate`, in the order in which they run: rules, census, sections (pieces, motions, drawing),
geodesic (fronts), diffusion, reattachment. `whole` runs them in memory.
"""
