"""The main job on real images: train a small network, watch its average beside it.

`data` finds the images, `learner` is a network and its average, in torch or in Paddle, `training` steps it
and yields records, `summary` adds them up, `screen` formats them, `run` does all of it.
"""
