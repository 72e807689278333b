"""Afterwards: snapshots of a run's averages, and the other averages that can be made from them."""
