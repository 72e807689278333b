"""The main job on real images: train a small network, watch its average beside it.

`options` says what is asked, `data` finds the images, `learner` is a network and its average, in torch or in
Paddle, `training` steps it and yields what happened, `summary` adds that up, `screen` shows it, `run` ties
them together.
"""
