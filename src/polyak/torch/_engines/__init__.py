"""The engines that carry out updates. An engine is made once from the plan's pairs and then only run.

``base`` defines an engine; ``select`` picks one for each tensor. ``foreach`` runs on any device,
``blocked`` on any CPU, ``native`` where the C kernel was built, ``triton`` on GPUs. ``rounding`` holds the
random bits and the 16-bit arithmetic they all share.
"""
