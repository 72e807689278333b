"""The main job on real images: train a small network, watch its average beside it.

`options` says what is asked, `data` finds the images, `model` is the network, `training` steps it and
yields what happened, `summary` adds that up, `screen` shows it, `run` ties them together.
"""
